// Who may use the device. Internal to the emulator.
#pragma once

#include <mutex>

namespace wn_emulated {
namespace emulator {

/// With checks there is one launch, allocation or copy at a time, since the checker's state is that
/// of the whole device. Without them host threads launch side by side.
class DeviceLock {
 public:
#ifdef WN_EMULATOR_CHECK
  DeviceLock() : lock_(mutex_) {}

 private:
  static inline std::mutex mutex_;
  std::lock_guard<std::mutex> lock_;
#else
  DeviceLock() {}
#endif
};

}  // namespace emulator
}  // namespace wn_emulated
