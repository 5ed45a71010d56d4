// The books of one run: what is open, how what ended ended, and after how long.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "google/rpc/status.pb.h"
#include "options.hpp"
#include "report.pb.h"
#include "tickring/v1/inference.pb.h"

using Clock = std::chrono::steady_clock;

class Books {
 public:
  explicit Books(const Options& options) : options_(options), places_(options.in_flight) {}

  // Waits until less than --in-flight is open, then opens a request; false: that took longer than `patience`.
  // Its latency counts from `due`; from now where that is null.
  bool open(std::uint64_t sequence, const Clock::time_point* due, std::chrono::nanoseconds patience);
  // Once for every request that was sent, from any thread.
  void ended(std::uint64_t sequence, const google::rpc::Status& end,
             const tickring::v1::PredictResponse& response);
  // Something else has failed.
  void failed(const google::rpc::Status& end);
  // When everything sent has ended.
  tickring::example::Report close();

 private:
  const Options& options_;
  const Clock::time_point began_ = Clock::now();
  std::mutex mutex_;  // for everything below
  std::condition_variable freed_;
  std::uint64_t places_;
  std::map<std::uint64_t, Clock::time_point> open_;
  std::map<std::pair<tickring::v1::Priority, std::string>, std::vector<double>> ms_;  // by class and status
  std::map<std::uint64_t, tickring::example::Prediction> predictions_;
  tickring::example::Report report_;
};

// For people: predictions, a table by class and status, a histogram.
void print(const tickring::example::Report& report);

// Code, reason and message in one line.
std::string one_line(const google::rpc::Status& status);
