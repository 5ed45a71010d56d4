// Requests on their way to the server and back: over one RPC stream, or in an RPC each.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "google/rpc/status.pb.h"
#include "tickring/v1/inference.grpc.pb.h"

using Stub = tickring::v1::InferenceService::Stub;

class Calls {
 public:
  // Called once for every request that was sent, from gRPC's threads. The response counts where that is OK.
  using OnEnd = std::function<void(std::uint64_t sequence, const google::rpc::Status&,
                                   const tickring::v1::PredictResponse&)>;

  virtual ~Calls() = default;
  // Returns at once; false: the RPC stream is over, nothing was sent and nothing will be.
  virtual bool send(std::uint64_t sequence, const tickring::v1::PredictRequest& request) = 0;
  // Nothing more will be sent. Returns when everything sent has ended: after `patience`, by force.
  virtual void finish(std::chrono::nanoseconds patience) = 0;
};

std::unique_ptr<Calls> stream_calls(Stub& stub, Calls::OnEnd on_end);
// `timeout` is the deadline of each RPC.
std::unique_ptr<Calls> unary_calls(Stub& stub, std::chrono::nanoseconds timeout, Calls::OnEnd on_end);

// How an RPC ended, with the details from its trailer.
google::rpc::Status rich_status(const grpc::Status& status);
