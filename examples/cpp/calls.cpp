#include "calls.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <utility>

using namespace tickring::v1;

namespace {

// One write at a time, which is what gRPC allows; the next one starts when the last is done. Whatever was
// sent ends once: with its answer, or in OnDone, which comes when no answer can follow.
class StreamCalls final : public Calls,
                          private grpc::ClientBidiReactor<PredictStreamRequest, PredictStreamResponse> {
 public:
  StreamCalls(Stub& stub, OnEnd on_end) : on_end_(std::move(on_end)) {
    stub.async()->PredictStream(&context_, this);
    AddHold();  // for the writes that send() starts: OnDone waits until it is removed
    StartRead(&answer_);
    StartCall();
  }

  ~StreamCalls() override { finish(std::chrono::nanoseconds(0)); }

  bool send(std::uint64_t sequence, const PredictRequest& request) override {
    PredictStreamRequest message;
    message.set_sequence(sequence);
    *message.mutable_request() = request;
    const std::lock_guard lock(mutex_);
    if (!held_) return false;
    open_.insert(sequence);
    unsent_.push_back(std::move(message));
    if (unsent_.size() == 1) StartWrite(&unsent_.front());
    return true;
  }

  void finish(std::chrono::nanoseconds patience) override {
    std::unique_lock lock(mutex_);
    if (held_ && unsent_.empty()) StartWritesDone();
    release();
    if (moved_.wait_for(lock, patience, [this] { return done_; })) return;
    given_up_ = true;
    context_.TryCancel();
    moved_.wait(lock, [this] { return done_; });
  }

 private:
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    if (!ok) return;  // the RPC is over
    unsent_.pop_front();
    if (!unsent_.empty()) {
      StartWrite(&unsent_.front());
    } else if (!held_) {
      StartWritesDone();
    }
  }

  void OnReadDone(bool ok) override {
    std::unique_lock lock(mutex_);
    if (!ok) return release();  // the RPC is over
    const bool expected = open_.erase(answer_.sequence()) == 1;
    lock.unlock();
    if (expected) on_end_(answer_.sequence(), answer_.error(), answer_.response());
    StartRead(&answer_);
  }

  void OnDone(const grpc::Status& status) override {
    google::rpc::Status end = rich_status(status);
    if (status.ok()) end.set_code(grpc::StatusCode::UNAVAILABLE);
    std::unique_lock lock(mutex_);
    end.set_message("the RPC stream ended without an answer: " + end.message());
    if (given_up_) {
      end.set_code(grpc::StatusCode::DEADLINE_EXCEEDED);
      end.set_message("the server did not answer in time");
    }
    lock.unlock();
    for (const std::uint64_t sequence : open_) on_end_(sequence, end, PredictResponse());
    lock.lock();
    done_ = true;
    moved_.notify_all();  // with the lock held, as this object is gone soon after
  }

  void release() {
    if (std::exchange(held_, false)) RemoveHold();
  }

  const OnEnd on_end_;
  grpc::ClientContext context_;
  PredictStreamResponse answer_;  // belongs to the read that is under way
  std::mutex mutex_;              // for everything below
  std::condition_variable moved_;
  std::deque<PredictStreamRequest> unsent_;  // the first one is being written
  std::set<std::uint64_t> open_;
  bool held_ = true;
  bool given_up_ = false;
  bool done_ = false;
};

class UnaryCalls final : public Calls {
 public:
  UnaryCalls(Stub& stub, std::chrono::nanoseconds timeout, OnEnd on_end)
      : stub_(stub), timeout_(timeout), on_end_(std::move(on_end)) {}

  ~UnaryCalls() override { finish(timeout_); }

  bool send(std::uint64_t sequence, const PredictRequest& request) override {
    const auto call = std::make_shared<Call>();
    call->request = request;
    call->context.set_deadline(std::chrono::system_clock::now() + timeout_);
    const auto ended = [this, sequence, call](const grpc::Status& status) {
      on_end_(sequence, rich_status(status), call->response);
      const std::lock_guard lock(mutex_);
      --open_;
      moved_.notify_all();
    };
    std::unique_lock lock(mutex_);
    ++open_;
    lock.unlock();
    stub_.async()->Predict(&call->context, &call->request, &call->response, ended);
    return true;
  }

  void finish(std::chrono::nanoseconds) override {
    std::unique_lock lock(mutex_);  // no force needed: deadlines end every RPC
    moved_.wait(lock, [this] { return open_ == 0; });
  }

 private:
  struct Call {
    grpc::ClientContext context;
    PredictRequest request;
    PredictResponse response;
  };

  Stub& stub_;
  const std::chrono::nanoseconds timeout_;
  const OnEnd on_end_;
  std::mutex mutex_;
  std::condition_variable moved_;
  std::uint64_t open_ = 0;
};

}  // namespace

std::unique_ptr<Calls> stream_calls(Stub& stub, Calls::OnEnd on_end) {
  return std::make_unique<StreamCalls>(stub, std::move(on_end));
}

std::unique_ptr<Calls> unary_calls(Stub& stub, std::chrono::nanoseconds timeout, Calls::OnEnd on_end) {
  return std::make_unique<UnaryCalls>(stub, timeout, std::move(on_end));
}

google::rpc::Status rich_status(const grpc::Status& status) {
  google::rpc::Status rich;
  if (!rich.ParseFromString(status.error_details())) rich.Clear();
  rich.set_code(status.error_code());
  rich.set_message(status.error_message());
  return rich;
}
