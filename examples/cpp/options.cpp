#include "options.hpp"

#include <algorithm>
#include <cctype>
#include <map>
#include <sstream>

using tickring::v1::Priority;

const char kUsage[] = R"(usage: tickring_client [OPTION]...
Sends windows to a tickring server like a trading engine and prints how long the answers took.

  --target TARGET        the server: HOST:PORT, or any gRPC target name (127.0.0.1:8001)
  --unary                an RPC for each request; without it, all go over one RPC stream
  --count N              requests to send (1000)
  --in-flight N          requests sent and not answered, at most (16)
  --rate N               requests a second, by the clock; without it, the next as soon as one is answered
  --priority CLASS,...   taken in turn: real_time_trading or high (where absent), market_data_update,
                         batch_processing or normal, historical_analysis, background_tasks or low
  --timeout SECONDS      of each request (1)
  --window FILE          windows as little-endian float32 without a header; random ones where absent
  --rows N               windows in each request (1)
  --model NAME           the server's default where absent
  --service-config FILE  gRPC service config: balancing, retries, health checking
  --show N               predictions to print (1)
  --json                 print everything as one line of JSON

Exit codes: 0 every request was answered with a prediction, 1 some were not, 2 misuse.
)";

namespace {

double number(const std::string& option, const std::string& text, double least, double most) {
  std::istringstream in(text);
  double value = 0;
  // Written so that NaN is refused too.
  if (in >> value && in.eof() && value >= least && value <= most) return value;
  std::ostringstream error;
  error << option << " is '" << text << "'; allowed: " << least << " to " << most;
  throw Misuse(error.str());
}

std::uint32_t whole(const std::string& option, const std::string& text, std::uint32_t least = 1) {
  const double value = number(option, text, least, 1'000'000'000);
  const auto rounded = static_cast<std::uint32_t>(value);
  if (value != rounded) throw Misuse(option + " is '" + text + "'; must be a whole number");
  return rounded;
}

Priority priority(std::string text) {
  static const std::map<std::string, std::string> aliases = {
      {"high", "real_time_trading"}, {"normal", "batch_processing"}, {"low", "background_tasks"}};
  const auto alias = aliases.find(text);
  std::string name = "priority_" + (alias == aliases.end() ? text : alias->second);
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::toupper(c); });
  Priority found = tickring::v1::PRIORITY_UNSPECIFIED;
  if (Priority_Parse(name, &found) && found != tickring::v1::PRIORITY_UNSPECIFIED) return found;
  throw Misuse("--priority is '" + text + "'; allowed: real_time_trading, market_data_update, " +
               "batch_processing, historical_analysis, background_tasks, high, normal, low");
}

std::vector<Priority> priorities(const std::string& text) {
  std::vector<Priority> found;
  std::istringstream in(text);
  for (std::string name; std::getline(in, name, ',');) found.push_back(priority(name));
  return found.empty() ? std::vector{priority("")} : found;
}

}  // namespace

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  for (auto argument = arguments.begin(); argument != arguments.end(); ++argument) {
    const std::string& option = *argument;
    const auto value = [&]() -> const std::string& {
      if (++argument == arguments.end()) throw Misuse(option + " needs a value");
      return *argument;
    };
    if (option == "--target") options.target = value();
    else if (option == "--unary") options.unary = true;
    else if (option == "--count") options.count = whole(option, value());
    else if (option == "--in-flight") options.in_flight = whole(option, value());
    else if (option == "--rate") options.rate = number(option, value(), 0.001, 1e6);
    else if (option == "--priority") options.priorities = priorities(value());
    else if (option == "--timeout") options.timeout_s = number(option, value(), 1e-6, 86400);
    else if (option == "--window") options.window_file = value();
    else if (option == "--rows") options.rows = whole(option, value());
    else if (option == "--model") options.model = value();
    else if (option == "--service-config") options.service_config_file = value();
    else if (option == "--show") options.show = whole(option, value(), 0);
    else if (option == "--json") options.json = true;
    else if (option == "--help") options.help = true;
    else throw Misuse("there is no option '" + option + "'; --help lists them");
  }
  return options;
}
