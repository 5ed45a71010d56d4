// The two ends of the arena: a front end's port and an engine's port.
//
// A slot has one owner. Pushing it to a lane gives it to the engine, completing it gives it back, and
// both are one store of a tail. Each port is used by one thread at a time: in Python that is what
// holding the GIL through the call means. Only EnginePort::wait() runs without it, and so may run
// beside wake() and complete(): it touches nothing but the gate, `seen_pushes_` and `sleeps`.
#pragma once

#include "engine_port.hpp"
#include "frontend_port.hpp"
