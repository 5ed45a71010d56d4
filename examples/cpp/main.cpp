// A client like a trading engine: sends windows at a rate or as fast as they are answered, and reports.
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>
#include <grpcpp/grpcpp.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <thread>

#include "calls.hpp"
#include "options.hpp"
#include "report.hpp"
#include "tickring/v1/model.grpc.pb.h"

using namespace tickring::v1;
using std::chrono::nanoseconds;

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors travel little-endian");

namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr std::size_t kRandomWindows = 64;  // different ones, sent in turn
constexpr std::chrono::seconds kModelTimeout(10);
// The server says DEADLINE_EXCEEDED at the deadline. Without a word for this much longer, it is not there.
constexpr std::chrono::seconds kGrace(1);

std::string read_file(const std::string& option, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string content(std::istreambuf_iterator<char>(file), {});
  if (content.empty()) throw Misuse(option + ": '" + path + "' cannot be read or is empty");
  return content;
}

std::shared_ptr<grpc::Channel> open_channel(const Options& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  if (!options.service_config_file.empty()) {
    arguments.SetServiceConfigJSON(read_file("--service-config", options.service_config_file));
  }
  return grpc::CreateCustomChannel(options.target, grpc::InsecureChannelCredentials(), arguments);
}

// What a request must carry. Throws Misuse for a model that this client cannot call.
grpc::Status ask_model(const std::shared_ptr<grpc::Channel>& channel, const std::string& name,
                       TensorSpec& input) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kModelTimeout);
  GetModelRequest request;
  request.set_model_name(name);
  GetModelResponse response;
  const grpc::Status status = ModelService::NewStub(channel)->GetModel(&context, request, &response);
  if (!status.ok()) return status;
  const Model& model = response.model();
  if (model.inputs_size() != 1 || model.inputs(0).data_type() != DATA_TYPE_FP32) {
    throw Misuse("--model: " + model.name() + " has other inputs than a single one of FP32");
  }
  input = model.inputs(0);
  return status;
}

// The bytes of windows: those of --window, or normally distributed ones, the same in every run.
std::string read_windows(const Options& options, std::size_t window_bytes) {
  if (!options.window_file.empty()) {
    const std::string windows = read_file("--window", options.window_file);
    if (windows.size() % window_bytes == 0) return windows;
    throw Misuse("--window: '" + options.window_file + "' has " + std::to_string(windows.size()) +
                 " bytes; must be a multiple of " + std::to_string(window_bytes));
  }
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(kRandomWindows * window_bytes / sizeof(float));
  for (float& value : values) value = normal(generator);
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

PredictRequest make_request(const Options& options, const TensorSpec& input, const std::string& windows,
                            std::size_t window_bytes, std::uint64_t sequence) {
  PredictRequest request;
  request.set_model_name(options.model);
  request.set_priority(options.priority(sequence));
  *request.mutable_timeout() = google::protobuf::util::TimeUtil::NanosecondsToDuration(
      static_cast<std::int64_t>(options.timeout_s * 1e9));
  Tensor& tensor = *request.add_inputs();
  tensor.set_name(input.name());
  tensor.set_data_type(DATA_TYPE_FP32);
  tensor.add_shape(options.rows);
  tensor.mutable_shape()->MergeFrom(input.shape());
  for (std::uint64_t row = 0; row < options.rows; ++row) {
    const std::uint64_t window = ((sequence - 1) * options.rows + row) % (windows.size() / window_bytes);
    tensor.mutable_data()->append(windows, window * window_bytes, window_bytes);
  }
  return request;
}

// Sends everything, unless the connection or the server goes away meanwhile, and waits for the ends.
void run(const Options& options, const TensorSpec& input, Stub& stub, Books& books) {
  std::size_t window_bytes = sizeof(float);
  for (const std::int64_t size : input.shape()) window_bytes *= static_cast<std::size_t>(size);
  const std::string windows = read_windows(options, window_bytes);
  const nanoseconds timeout(static_cast<std::int64_t>(options.timeout_s * 1e9));
  const auto on_end = [&books](auto sequence, const auto& end, const auto& response) {
    books.ended(sequence, end, response);
  };
  const auto calls = options.unary ? unary_calls(stub, timeout, on_end) : stream_calls(stub, on_end);
  const auto began = Clock::now();
  for (std::uint64_t sequence = 1; sequence <= options.count; ++sequence) {
    const PredictRequest request = make_request(options, input, windows, window_bytes, sequence);
    Clock::time_point due;
    if (options.rate > 0) {
      // A request that waits for its turn is late from here on: the delays of the server show.
      const double after_s = static_cast<double>(sequence - 1) / options.rate;
      due = began + nanoseconds(static_cast<std::int64_t>(after_s * 1e9));
      std::this_thread::sleep_until(due);
    }
    if (!books.open(sequence, options.rate > 0 ? &due : nullptr, timeout + kGrace)) break;
    if (!calls->send(sequence, request)) break;
  }
  calls->finish(timeout + kGrace);
}

int call(const Options& options) {
  const auto channel = open_channel(options);
  TensorSpec input;
  Books books(options);
  const grpc::Status status = ask_model(channel, options.model, input);
  if (status.ok()) {
    run(options, input, *InferenceService::NewStub(channel), books);
  } else {
    books.failed(rich_status(status));
  }
  const tickring::example::Report report = books.close();
  if (options.json) {
    google::protobuf::util::JsonPrintOptions style;
    style.preserve_proto_field_names = style.always_print_primitive_fields = true;
    std::string json;
    const bool written = MessageToJsonString(report, &json, style).ok();
    std::cout << (written ? json : "null") << std::endl;
  } else {
    print(report);
  }
  if (report.ok() == report.requests()) return 0;
  std::cerr << "tickring_client: " << report.requests() - report.ok() << " of " << report.requests()
            << " requests got no prediction; the first: " << one_line(report.first_failure()) << std::endl;
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse_options({argv + 1, argv + argc});
    if (!options.help) return call(options);
    std::cout << kUsage;
    return 0;
  } catch (const Misuse& misuse) {
    std::cerr << "tickring_client: " << misuse.what() << std::endl;
    return 2;
  }
}
