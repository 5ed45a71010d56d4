// What the command line asks for.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "tickring/v1/types.pb.h"

struct Options {
  std::string target = "127.0.0.1:8001";
  std::string model;                // empty: the server's default
  std::string window_file;          // empty: random windows
  std::string service_config_file;  // empty: none
  std::vector<tickring::v1::Priority> priorities = {tickring::v1::PRIORITY_REAL_TIME_TRADING};
  std::uint32_t count = 1000;
  std::uint32_t in_flight = 16;
  std::uint32_t rows = 1;  // of one request
  std::uint32_t show = 1;
  double rate = 0;  // requests a second; 0: the next one as soon as one of in_flight is answered
  double timeout_s = 1;
  bool unary = false;
  bool json = false;
  bool help = false;

  // Class of a request; the first one has sequence 1.
  tickring::v1::Priority priority(std::uint64_t sequence) const {
    return priorities[(sequence - 1) % priorities.size()];
  }
};

// The command line is wrong; the text names the option, its value and what is allowed.
struct Misuse : std::runtime_error {
  using std::runtime_error::runtime_error;
};

extern const char kUsage[];

// Throws Misuse.
Options parse_options(const std::vector<std::string>& arguments);
