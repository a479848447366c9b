// oneDNN's worker: primitives made beforehand, on buffers made beforehand. rust/src/serve.rs and serve.py say how a
// worker talks and times. Threads are OpenMP's.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

namespace {

using dnnl::memory;
using dnnl::normalization_flags;
using dnnl::prop_kind;
using Call = std::function<void()>;

// Has buffers begin at a line of the cache, as the tensors of PyTorch and JAX do.
template <class T>
struct FromLine {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  FromLine() = default;
  template <class U>
  FromLine(const FromLine<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  template <class U>
  bool operator==(const FromLine<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const FromLine<U>&) const {
    return false;
  }
};
using Values = std::vector<float, FromLine<float>>;

constexpr float kEps = 1e-5f;

// "op/call/type/layout/dims[/groups]": everything there is to know about a case is in its name.
struct Case {
  std::string op, call, type, layout;
  std::vector<int64_t> dims;  // as they lie in memory
  int64_t groups = 0;

  explicit Case(const std::string& name) {
    std::istringstream parts(name);
    std::string sizes, part;
    for (std::string* field : {&op, &call, &type, &layout, &sizes}) std::getline(parts, *field, '/');
    if (std::getline(parts, part)) groups = std::stoll(part.substr(1));
    std::istringstream all(sizes);
    while (std::getline(all, part, 'x')) dims.push_back(std::stoll(part));
  }

  bool forward() const { return call != "bwd"; }
  bool backward() const { return call == "bwd" || call == "fwdbwd"; }
  int64_t channels() const { return layout == "last" ? dims.back() : dims[1]; }
  int64_t size() const {
    int64_t product = 1;
    for (int64_t dim : dims) product *= dim;
    return product;
  }
};

// benches/norms/noise.rs: `count` values from the one numbered `start` on.
Values noise(int64_t start, int64_t count) {
  constexpr int64_t kPeriod = 1 << 20;
  Values values(count);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits = static_cast<uint32_t>((start + i) % kPeriod + 1) * 0x9e3779b1u;
    bits ^= bits >> 15;
    bits *= 0x85ebca77u;
    bits ^= bits >> 13;
    values[i] = static_cast<float>(bits >> 8) / (1 << 23) - 0.75f;
  }
  return values;
}

// A primitive with its arguments.
struct Step {
  dnnl::primitive primitive;
  std::unordered_map<int, memory> args;
};

class Norm {
 public:
  explicit Norm(const Case& c) : case_(c), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    if (c.type != "f32") throw std::runtime_error("no normalization of 16-bit floats on this processor");
    if (c.op == "rms_norm") throw std::runtime_error("no RMSNorm in this version");
    make_buffers();
    if (c.op == "batch_norm") make_batch_norm();
    if (c.op == "layer_norm") make_layer_norm();
    if (c.op == "group_norm" || c.op == "instance_norm") make_group_norm();
    // Leaves the statistics that a backward pass alone reads.
    run(forward_);
    stream_.wait();
  }

  void call() {
    if (case_.forward()) run(forward_);
    if (case_.backward()) run(backward_);
    stream_.wait();
  }

  std::map<std::string, Values*> outputs() {
    std::map<std::string, Values*> found;
    if (case_.forward()) found["y"] = &y_;
    if (case_.backward()) found.insert({{"dx", &dx_}, {"dweight", &dweight_}, {"dbias", &dbias_}});
    return found;
  }

 private:
  void make_buffers() {
    const int64_t size = case_.size(), channels = case_.channels();
    x_ = noise(0, size);
    dy_ = noise(1, size);
    weight_ = noise(0, channels);
    bias_ = noise(1, channels);
    for (float& weight : weight_) weight = 1 + weight / 2;
    for (float& bias : bias_) bias /= 2;
    y_.resize(size);
    dx_.resize(size);
    dweight_.resize(channels);
    dbias_.resize(channels);
  }

  bool inference() const { return case_.call == "eval_fwd"; }

  memory::desc tensor() const {
    using tag = memory::format_tag;
    const auto& dims = case_.dims;
    if (dims.size() == 2) return {dims, memory::data_type::f32, tag::ab};
    const bool last = case_.layout == "last";
    const memory::dims logical = last ? memory::dims{dims[0], dims[3], dims[1], dims[2]} : dims;
    return {logical, memory::data_type::f32, last ? tag::nhwc : tag::nchw};
  }

  memory::desc vector(int64_t len) const { return {{len}, memory::data_type::f32, memory::format_tag::a}; }
  memory bind(const memory::desc& desc, Values& values) { return {desc, engine_, values.data()}; }

  void make_batch_norm() {
    const auto d = tensor();
    auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    if (inference()) flags |= normalization_flags::use_global_stats;
    const auto kind = inference() ? prop_kind::forward_inference : prop_kind::forward_training;
    const dnnl::batch_normalization_forward::primitive_desc forward(engine_, kind, d, d, kEps, flags);
    make_steps(dnnl::batch_normalization_forward(forward), d, vector(case_.channels()), vector(case_.channels()));
    if (case_.backward()) {
      const dnnl::batch_normalization_backward::primitive_desc backward(engine_, prop_kind::backward, d, d, d, kEps,
                                                                        flags, forward);
      backward_.primitive = dnnl::batch_normalization_backward(backward);
    }
  }

  void make_layer_norm() {
    const auto d = tensor();
    const auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    const auto stats = vector(case_.dims[0]);
    const dnnl::layer_normalization_forward::primitive_desc forward(engine_, prop_kind::forward_training, d, d, stats,
                                                                    kEps, flags);
    make_steps(dnnl::layer_normalization_forward(forward), d, stats, vector(case_.channels()));
    if (case_.backward()) {
      const dnnl::layer_normalization_backward::primitive_desc backward(engine_, prop_kind::backward, d, d, d, stats,
                                                                        kEps, flags, forward);
      backward_.primitive = dnnl::layer_normalization_backward(backward);
      backward_.args.insert({DNNL_ARG_SHIFT, bind(vector(case_.channels()), bias_)});  // the others' must not have it
    }
  }

  void make_group_norm() {
    const auto d = tensor();
    const auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    const int64_t groups = case_.groups ? case_.groups : case_.channels();
    const memory::desc stats({case_.dims[0], groups}, memory::data_type::f32, memory::format_tag::ab);
    const dnnl::group_normalization_forward::primitive_desc forward(engine_, prop_kind::forward_training, d, d, groups,
                                                                    kEps, flags);
    make_steps(dnnl::group_normalization_forward(forward), d, stats, vector(case_.channels()));
    if (case_.backward()) {
      const dnnl::group_normalization_backward::primitive_desc backward(engine_, prop_kind::backward, d, d, d, groups,
                                                                        kEps, flags, forward);
      backward_.primitive = dnnl::group_normalization_backward(backward);
    }
  }

  // Arguments are the same for every op.
  void make_steps(dnnl::primitive forward, const memory::desc& d, const memory::desc& stats, const memory::desc& params) {
    const int64_t saved = static_cast<int64_t>(stats.get_size() / sizeof(float));
    mean_.assign(saved, 0.0f);
    var_.assign(saved, 1.0f);
    const memory x = bind(d, x_), mean = bind(stats, mean_), var = bind(stats, var_), weight = bind(params, weight_);
    forward_ = {forward,
                {{DNNL_ARG_SRC, x},
                 {DNNL_ARG_DST, bind(d, y_)},
                 {DNNL_ARG_SCALE, weight},
                 {DNNL_ARG_SHIFT, bind(params, bias_)},
                 {DNNL_ARG_MEAN, mean},
                 {DNNL_ARG_VARIANCE, var}}};
    backward_.args = {{DNNL_ARG_SRC, x},
                      {DNNL_ARG_DIFF_DST, bind(d, dy_)},
                      {DNNL_ARG_SCALE, weight},
                      {DNNL_ARG_MEAN, mean},
                      {DNNL_ARG_VARIANCE, var},
                      {DNNL_ARG_DIFF_SRC, bind(d, dx_)},
                      {DNNL_ARG_DIFF_SCALE, bind(params, dweight_)},
                      {DNNL_ARG_DIFF_SHIFT, bind(params, dbias_)}};
  }

  void run(const Step& step) { step.primitive.execute(stream_, step.args); }

  Case case_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  Values x_, dy_, y_, dx_, weight_, bias_, dweight_, dbias_, mean_, var_;
  Step forward_, backward_;
};

double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Microseconds of a call, in samples of several calls each, sorted.
std::vector<double> time(const Call& call, double min_time) {
  constexpr int kWarmUp = 3;
  constexpr double kSampleUs = 150;  // so long that reading the clock does not count
  constexpr size_t kMinSamples = 15, kMaxSamples = 3000;
  constexpr double kMaxSeconds = 1.0;  // after which even a slow call has been timed enough
  constexpr size_t kMinSlowSamples = 3;
  const auto timed = [&](int calls) {
    const double start = now();
    for (int i = 0; i < calls; ++i) call();
    return (now() - start) * 1e6 / calls;
  };
  timed(kWarmUp);
  const int calls = static_cast<int>(std::clamp(std::ceil(kSampleUs / std::max(timed(1), 0.5)), 1.0, 500.0));
  std::vector<double> times;
  const double start = now();
  while (times.size() < kMaxSamples) {
    const double passed = now() - start;
    if (times.size() >= kMinSamples && passed >= min_time) break;
    if (times.size() >= kMinSlowSamples && passed >= std::max(kMaxSeconds, min_time)) break;
    times.push_back(timed(calls));
  }
  std::sort(times.begin(), times.end());
  return times;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return std::isfinite(value) ? text : "null";
}

// What two results are compared by, as JSON.
std::string digest(const Values& values) {
  constexpr size_t kSamples = 64;
  double sum = 0;
  for (float value : values) sum += std::fabs(value);
  std::string text = "{\"len\": " + std::to_string(values.size()) +
                     ", \"mean_abs\": " + number(sum / static_cast<double>(values.size())) + ", \"samples\": [";
  for (size_t i = 0; i < kSamples; ++i) text += (i ? ", " : "") + number(values[i * values.size() / kSamples]);
  return text + "]}";
}

// What follows `"key":` in a flat JSON object whose texts hold no quotes or commas.
std::string field(const std::string& line, const std::string& key) {
  const std::string quoted = "\"" + key + "\":";
  const size_t at = line.find(quoted);
  if (at == std::string::npos) throw std::runtime_error("a request without " + key);
  size_t start = line.find_first_not_of(" \"", at + quoted.size());
  return line.substr(start, line.find_first_of(",}\"", start) - start);
}

std::string answer(const std::string& request) {
  Norm norm{Case(field(request, "case"))};
  const auto times = time([&] { norm.call(); }, std::stod(field(request, "min_time")));
  std::string outputs;
  if (field(request, "check") == "true") {
    for (const auto& [name, values] : norm.outputs()) {
      outputs += (outputs.empty() ? "\"" : ", \"") + name + "\": " + digest(*values);
    }
  }
  return "{\"min_us\": " + number(times.front()) + ", \"median_us\": " + number(times[times.size() / 2]) +
         ", \"outputs\": {" + outputs + "}}";
}

}  // namespace

int main() {
  const dnnl_version_t* v = dnnl_version();
  std::cout << "{\"version\": \"" << v->major << '.' << v->minor << '.' << v->patch << "\"}" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::string text;
    try {
      text = answer(line);
    } catch (const std::exception& error) {
      text = std::string("{\"left_out\": \"") + error.what() + "\"}";
    }
    std::cout << text << std::endl;
  }
}
