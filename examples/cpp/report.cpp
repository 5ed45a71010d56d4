#include "report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>

#include "google/rpc/error_details.pb.h"

using google::rpc::Status;
using tickring::example::Prediction;
using tickring::example::Report;

namespace {

const char* const kCodes[] = {
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"};
constexpr std::uint32_t kBarWidth = 50;
constexpr int kValuesShown = 6;

// Code and reason, such as "DEADLINE_EXCEEDED EXPIRED_IN_QUEUE".
std::string label(const Status& status) {
  std::string text = "code " + std::to_string(status.code());
  if (status.code() >= 0 && status.code() < static_cast<int>(std::size(kCodes))) text = kCodes[status.code()];
  google::rpc::ErrorInfo info;
  for (const auto& detail : status.details()) {
    if (detail.UnpackTo(&info)) text += ' ' + info.reason();
  }
  return text;
}

// The smallest of the samples that at least this share of them does not exceed.
double quantile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::max<std::size_t>(rank, 1) - 1];
}

Prediction prediction_of(std::uint64_t sequence, const tickring::v1::PredictResponse& response) {
  Prediction prediction;
  prediction.set_sequence(static_cast<std::uint32_t>(sequence));
  prediction.set_model_name(response.model_name());
  prediction.set_model_version(response.model_version());
  prediction.set_queue_wait_ms(static_cast<double>(response.timing().queue_wait_ns()) / 1e6);
  prediction.set_batch_size(response.timing().batch_size());
  for (const auto& tensor : response.outputs()) {
    auto& output = *prediction.add_outputs();
    output.set_name(tensor.name());
    for (const std::int64_t size : tensor.shape()) output.add_shape(static_cast<std::int32_t>(size));
    if (tensor.data_type() != tickring::v1::DATA_TYPE_FP32) continue;
    const std::size_t values = tensor.data().size() / sizeof(float);
    output.mutable_values()->Resize(static_cast<int>(values), 0);
    std::memcpy(output.mutable_values()->mutable_data(), tensor.data().data(), values * sizeof(float));
  }
  return prediction;
}

}  // namespace

bool Books::open(std::uint64_t sequence, const Clock::time_point* due, std::chrono::nanoseconds patience) {
  std::unique_lock lock(mutex_);
  if (!freed_.wait_for(lock, patience, [this] { return places_ > 0; })) return false;
  --places_;
  open_.emplace(sequence, due == nullptr ? Clock::now() : *due);
  return true;
}

void Books::ended(std::uint64_t sequence, const Status& end, const tickring::v1::PredictResponse& response) {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  const auto start = open_.find(sequence);
  const std::chrono::duration<double, std::milli> latency = now - start->second;
  open_.erase(start);
  ms_[{options_.priority(sequence), label(end)}].push_back(latency.count());
  if (end.code() != 0) {
    if (!report_.has_first_failure()) *report_.mutable_first_failure() = end;
  } else {
    report_.set_ok(report_.ok() + 1);
    if (sequence <= options_.show) predictions_[sequence] = prediction_of(sequence, response);
  }
  ++places_;
  freed_.notify_one();
}

void Books::failed(const Status& end) {
  const std::lock_guard lock(mutex_);
  if (!report_.has_first_failure()) *report_.mutable_first_failure() = end;
}

Report Books::close() {
  const std::lock_guard lock(mutex_);
  report_.set_method(options_.unary ? "Predict" : "PredictStream");
  report_.set_requests(options_.count);
  report_.set_seconds(std::chrono::duration<double>(Clock::now() - began_).count());
  std::map<int, std::uint32_t> bars;  // by twice the binary logarithm of the milliseconds
  for (auto& [key, ms] : ms_) {
    std::sort(ms.begin(), ms.end());
    auto& row = *report_.add_rows();
    std::string name = Priority_Name(key.first).substr(std::strlen("PRIORITY_"));
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    row.set_priority(name);
    row.set_status(key.second);
    row.set_count(static_cast<std::uint32_t>(ms.size()));
    row.set_p50_ms(quantile(ms, 0.5));
    row.set_p90_ms(quantile(ms, 0.9));
    row.set_p99_ms(quantile(ms, 0.99));
    row.set_p999_ms(quantile(ms, 0.999));
    row.set_max_ms(ms.back());
    if (key.second != kCodes[0]) continue;
    for (const double each : ms) ++bars[static_cast<int>(std::floor(2 * std::log2(std::max(each, 1e-3))))];
  }
  for (const auto& [step, count] : bars) {
    auto& bar = *report_.add_histogram();
    bar.set_from_ms(std::exp2(step / 2.0));
    bar.set_to_ms(std::exp2((step + 1) / 2.0));
    bar.set_count(count);
  }
  for (const auto& entry : predictions_) *report_.add_predictions() = entry.second;
  return report_;
}

void print(const Report& report) {
  for (const auto& prediction : report.predictions()) {
    std::printf("request %u, %s version %s\n", prediction.sequence(), prediction.model_name().c_str(),
                prediction.model_version().c_str());
    for (const auto& output : prediction.outputs()) {
      std::printf("  %-24s", output.name().c_str());
      const int shown = std::min(output.values_size(), kValuesShown);
      for (int i = 0; i < shown; ++i) std::printf(" %g", static_cast<double>(output.values(i)));
      std::printf(output.values_size() > shown ? " ...\n" : "\n");
    }
  }
  std::printf("%u of %u requests answered in %.2f s by %s, after ms:\n", report.ok(), report.requests(),
              report.seconds(), report.method().c_str());
  std::printf("%-20s%-38s%8s%9s%9s%9s%9s%9s\n", "class", "status", "count", "p50", "p90", "p99", "p99.9",
              "max");
  for (const auto& row : report.rows()) {
    std::printf("%-20s%-38s%8u%9.2f%9.2f%9.2f%9.2f%9.2f\n", row.priority().c_str(), row.status().c_str(),
                row.count(), row.p50_ms(), row.p90_ms(), row.p99_ms(), row.p999_ms(), row.max_ms());
  }
  std::uint32_t most = 1;
  for (const auto& bar : report.histogram()) most = std::max(most, bar.count());
  for (const auto& bar : report.histogram()) {
    const std::string drawn(std::size_t{bar.count()} * kBarWidth / most, '#');
    std::printf("%9.2f to%9.2f%8u %s\n", bar.from_ms(), bar.to_ms(), bar.count(), drawn.c_str());
  }
}

std::string one_line(const Status& status) {
  std::string line = label(status) + ": " + status.message();
  std::replace_if(line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return line;
}
