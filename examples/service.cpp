// SPDX-License-Identifier: MIT
// How a service holds many readers in one process: the weights once, a session that has read what
// all tenants share, and a fork of it for each tenant, on a thread of its own. Shows what a tenant
// costs, and that none reads differently for the others being there.
#include <cstddef>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ttt/ttt.hpp>

using Attention = ttt::SlidingWindowAttention<256>;
using Reader = ttt::LanguageModel<
    ttt::Stack<4, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<2, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;
using Learner = ttt::InnerLoop<ttt::Sgd>;
using Session = ttt::Session<ttt::Weights<Reader, ttt::Cpu>, Learner>;

/// One customer's text, and what came of it.
struct Tenant {
  std::string name;
  std::string text;
  std::vector<float> nll = {};
  double bits_per_byte = 0;
  std::string reply = {};
  ttt::Index state_bytes = 0;
  std::exception_ptr error = nullptr;
};

static std::string repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

/// What a tenant's thread does. Nothing may leave a thread as an exception.
static void serve(Session session, Tenant& tenant) noexcept {
  try {
    auto report = session.read(tenant.text);
    tenant.bits_per_byte = report.bits_per_token();
    tenant.nll = std::move(report.nll);
    tenant.reply = ttt::io::ByteTokenizer{}.decode(session.generate(90, ttt::Greedy{}));
    tenant.state_bytes = session.state_bytes();
  } catch (...) {
    tenant.error = std::current_exception();
  }
}

int main() try {
  const ttt::Cpu cpu(1);  // one thread a tenant is enough; with more, they would take turns
  const auto weights = ttt::load<Reader>(TTT_EXAMPLE_MODELS "/books-byte.safetensors", cpu);
  const Learner learner{.chunk = 64, .clip = 1.0f, .optimizer = {.rate = 1.0f}};

  //! [service]
  Session primed(weights, learner);
  primed.read("A ticket has a number, a name and a line of text. An answer is short and polite.\n");

  std::vector<Tenant> tenants = {
      {"bakery", repeated("ticket: the oven in the shop is cold. answer: please turn it on.\n", 8)},
      {"school",
       repeated("ticket: the bell has not rung. answer: the clock is being mended.\n", 8)},
      {"garage", repeated("12:04 lift 3 down\n12:09 lift 3 up\n", 16)}};
  {
    std::vector<std::jthread> threads;
    for (Tenant& tenant : tenants) threads.emplace_back(serve, primed.fork(), std::ref(tenant));
  }  // joined here
  //! [/service]

  std::size_t same = 0;
  for (Tenant& tenant : tenants) {
    if (tenant.error) std::rethrow_exception(tenant.error);
    std::printf("%s: %.3f bits per byte\n%s ...\n\n", tenant.name.c_str(), tenant.bits_per_byte,
                tenant.reply.c_str());
    Tenant alone{tenant.name, tenant.text};
    serve(primed.fork(), alone);
    // The first byte follows the shared text, so every score is a number.
    same += alone.nll == tenant.nll && alone.reply == tenant.reply ? 1 : 0;
  }
  std::printf("%zu of %zu tenants read the same, to the bit, when they are alone\n", same,
              tenants.size());
  std::printf("weights, shared: %.1f MB; a tenant at work: %.1f MB, of which its state: %.1f MB\n",
              static_cast<double>(weights.bytes()) / 1e6,
              static_cast<double>(Session::required_bytes(weights, learner)) / 1e6,
              static_cast<double>(tenants[0].state_bytes) / 1e6);
  return same == tenants.size() ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
