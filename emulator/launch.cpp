// The way into and out of the emulator: validation of launches, configuration, reports, the log.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "device_lock.h"
#include "scheduler.h"

namespace wn_emulated {
namespace emulator {
namespace {

thread_local std::string last_report;

struct Log {
  bool running = false;
  std::vector<wn_emulated_launch> launches;
  std::unique_ptr<L2Model> l2;  // null: none is modelled
};
thread_local Log launch_log;

[[noreturn]] void refuse_environment(const char* name, const char* value, const char* expected) {
  std::fprintf(stderr, "%s is `%s`; expected %s\n", name, value, expected);
  std::abort();
}

/// The number in an environment variable, or `initial` where it is not set.
uint64_t environment_number(const char* name, uint64_t initial, uint64_t most) {
  const char* text = std::getenv(name);
  if (!text) return initial;
  char* end = nullptr;
  const unsigned long long number = std::strtoull(text, &end, 10);
  const bool starts_with_digit = text[0] >= '0' && text[0] <= '9';
  if (!starts_with_digit || *end || number > most) refuse_environment(name, text, "a number");
  return number;
}

wn_emulated_order environment_order() {
  const char* const name = "WARPNORM_EMULATOR_ORDER";
  const char* text = std::getenv(name);
  if (!text || std::strcmp(text, "ascending") == 0) return WN_ORDER_ASCENDING;
  if (std::strcmp(text, "descending") == 0) return WN_ORDER_DESCENDING;
  if (std::strcmp(text, "random") == 0) return WN_ORDER_RANDOM;
  refuse_environment(name, text, "`ascending`, `descending` or `random`");
}

struct SharedConfig {
  std::mutex mutex;
  wn_emulated_config value;

  SharedConfig() {
    value.order = environment_order();
    const uint64_t preempt = environment_number("WARPNORM_EMULATOR_PREEMPT", 0, INT32_MAX / 2);
    value.preempt = static_cast<int32_t>(preempt);
    value.seed = environment_number("WARPNORM_EMULATOR_SEED", 1, UINT64_MAX);
    value.resident_blocks = 1;
    value.sms = 4;
  }
};

SharedConfig& shared_config() {
  static SharedConfig config;
  return config;
}

wn_emulated_config current_config() {
  SharedConfig& config = shared_config();
  const std::lock_guard<std::mutex> lock(config.mutex);
  return config.value;
}

/// Schedulers are kept for later launches: making their stacks costs more than a small launch.
class SchedulerPool {
 public:
  std::unique_ptr<Scheduler> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) return std::make_unique<Scheduler>();
    std::unique_ptr<Scheduler> scheduler = std::move(idle_.back());
    idle_.pop_back();
    return scheduler;
  }
  void give_back(std::unique_ptr<Scheduler> scheduler) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(scheduler));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scheduler>> idle_;
};

SchedulerPool& scheduler_pool() {
  static auto* pool = new SchedulerPool;  // never destroyed: threads may launch until the very end
  return *pool;
}

/// How many blocks of the launch can be resident on an SM: limits of an H100, registers aside.
uint64_t blocks_per_sm(const LaunchRequest& launch, uint64_t threads) {
  constexpr uint64_t kMostThreads = 2048;
  constexpr uint64_t kMostBlocks = 32;
  constexpr uint64_t kSharedBytes = 228 << 10;
  constexpr uint64_t kReservedPerBlock = 1 << 10;
  const uint64_t rounded = (threads + kWarpSize - 1) / kWarpSize * kWarpSize;
  const uint64_t by_memory = kSharedBytes / (launch.dynamic_smem + kReservedPerBlock);
  return std::min({kMostThreads / rounded, by_memory, kMostBlocks});
}

int32_t refuse(int32_t code, const char* kernel, const char* reason) {
  report("[launch] kernel %s: %s", kernel, reason);
  return code;
}

int32_t validate(const LaunchRequest& launch, const wn_emulated_config& config) {
  const dim3& grid = launch.grid;
  const dim3& block = launch.block;
  const char* kernel = readable_name(launch.signature);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0) {
    return refuse(kInvalidConfiguration, kernel, "a dimension of the grid or the block is zero");
  }
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > 1024) {
    return refuse(kInvalidConfiguration, kernel,
                  "the block has more than 1024 threads, or 64 along z");
  }
  if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) {
    return refuse(kInvalidConfiguration, kernel,
                  "the grid has over 2^31 - 1 blocks along x, or 65535 along y or z");
  }
  if (launch.dynamic_smem > kSharedLimit) {
    return refuse(kInvalidValue, kernel, "dynamic shared memory is over the limit of 227 KiB");
  }
  if (launch.cluster < 1 || launch.cluster > 16 || grid.x % launch.cluster != 0) {
    return refuse(kInvalidClusterSize, kernel,
                  "a cluster has 1 to 16 blocks, and divides the grid along x");
  }
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t resident = static_cast<uint64_t>(config.sms) * blocks_per_sm(launch, threads);
  if (launch.cooperative && blocks > resident) {
    return refuse(kCooperativeTooLarge, kernel,
                  "the cooperative grid cannot be resident as a whole");
  }
  if (blocks >= UINT32_MAX / threads) {
    return refuse(kNotSupported, kernel, "the emulator numbers threads with 32 bits");
  }
  return kSuccess;
}

void record(const LaunchRequest& launch, const Scheduler& scheduler) {
  wn_emulated_launch entry;
  entry.kernel = readable_name(launch.signature);
  entry.grid_x = launch.grid.x;
  entry.grid_y = launch.grid.y;
  entry.grid_z = launch.grid.z;
  entry.block_x = launch.block.x;
  entry.block_y = launch.block.y;
  entry.block_z = launch.block.z;
  entry.bytes_read = scheduler.bytes_read;
  entry.bytes_written = scheduler.bytes_written;
  entry.dram_read = entry.dram_written = 0;  // known when the log ends
  launch_log.launches.push_back(entry);
}

std::string parsed_name(const std::string& signature) {
  const char* const key = "kKernel = ";
  const size_t found = signature.find(key);
  if (found == std::string::npos) return signature;
  const size_t begin = found + std::strlen(key);
  std::string name = signature.substr(begin, signature.rfind(']') - begin);
  // Compilers differ in whether they write the address operator and parentheses around the name.
  if (name.size() > 2 && name.front() == '(' && name.back() == ')')
    name = name.substr(1, name.size() - 2);
  if (!name.empty() && name.front() == '&') name.erase(0, 1);
  for (const char* prefix : {"wn_emulated::", "dev::"}) {
    const size_t length = std::strlen(prefix);
    for (size_t at = name.find(prefix); at != std::string::npos; at = name.find(prefix, at)) {
      name.erase(at, length);
    }
  }
  return name;
}

}  // namespace

const char* readable_name(const char* signature) {
  static std::mutex mutex;
  static auto* names = new std::unordered_map<const char*, std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = names->find(signature);
  if (found == names->end()) found = names->emplace(signature, parsed_name(signature)).first;
  return found->second.c_str();
}

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void report(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  last_report = text;
}

void fail(int32_t code, const char* tool, const char* format, ...) {
  char text[768];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  const uint3& block = current->block_index;
  const uint3& thread = current->thread_index;
  report("[%s] kernel %s: block (%u,%u,%u) thread (%u,%u,%u): %s", tool, scheduler->kernel_name(),
         block.x, block.y, block.z, thread.x, thread.y, thread.z, text);
  scheduler->abandon(code);
}

int32_t submit(const LaunchRequest& launch) {
  const wn_emulated_config config = current_config();
  const int32_t refused = validate(launch, config);
  if (refused != kSuccess || launch.prepare_only) return refused;
  const DeviceLock lock;
  std::unique_ptr<Scheduler> scheduler = scheduler_pool().take();
  scheduler->l2 = launch_log.l2.get();
  if (scheduler->l2) scheduler->l2->begin_launch();
  const int32_t code = scheduler->run(launch, config);
  if (launch_log.running) record(launch, *scheduler);
  scheduler_pool().give_back(std::move(scheduler));
  return code;
}

}  // namespace emulator
}  // namespace wn_emulated

using namespace wn_emulated::emulator;

extern "C" {

const char* wn_emulated_last_report(void) { return last_report.c_str(); }

int32_t wn_emulated_checks(void) {
#ifdef WN_EMULATOR_CHECK
  return 1;
#else
  return 0;
#endif
}

int32_t wn_emulated_configure(const wn_emulated_config* config) {
  const bool known_order = config->order >= WN_ORDER_ASCENDING && config->order <= WN_ORDER_RANDOM;
  const bool preempt_fits = config->preempt >= 0 && config->preempt <= INT32_MAX / 2;
  if (!known_order || !preempt_fits || config->resident_blocks < 1 || config->sms < 1) {
    report("[launch] wn_emulated_configure: a field is out of range");
    return kInvalidValue;
  }
  SharedConfig& shared = shared_config();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  shared.value = *config;
  return kSuccess;
}

void wn_emulated_get_config(wn_emulated_config* out) { *out = current_config(); }

void wn_emulated_log_start(uint64_t l2_bytes) {
  launch_log.launches.clear();
  launch_log.l2.reset();
  if (wn_emulated_checks() && l2_bytes > 0) launch_log.l2 = std::make_unique<L2Model>(l2_bytes);
  launch_log.running = true;
}

int64_t wn_emulated_log_stop(void) {
  launch_log.running = false;
  if (launch_log.l2) launch_log.l2->flush();
  for (size_t i = 0; launch_log.l2 && i < launch_log.launches.size(); ++i) {
    const L2Model::Traffic& traffic = launch_log.l2->traffic(i);
    launch_log.launches[i].dram_read = traffic.read;
    launch_log.launches[i].dram_written = traffic.written;
  }
  launch_log.l2.reset();
  return static_cast<int64_t>(launch_log.launches.size());
}

int32_t wn_emulated_log_get(int64_t index, wn_emulated_launch* out) {
  if (index < 0 || index >= static_cast<int64_t>(launch_log.launches.size())) {
    report("[launch] wn_emulated_log_get: the log has no launch %lld",
           static_cast<long long>(index));
    return kInvalidValue;
  }
  *out = launch_log.launches[static_cast<size_t>(index)];
  return kSuccess;
}

}  // extern "C"
