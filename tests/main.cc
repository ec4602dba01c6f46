// The test program: every new buffer is filled with NaN, so a kernel that forgets an element fails
// loudly.
#include "runtime/memory.h"

#include <gtest/gtest.h>

int main(int count, char** arguments) {
  ::testing::InitGoogleTest(&count, arguments);
  moe::memory_poison(true);
  return RUN_ALL_TESTS();
}
