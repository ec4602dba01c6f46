// The instruction sets SIMD code is built for: the compiler's baseline, AVX2 and AVX-512. Others
// would cost compile time and test time for machines nobody trains on. Include before any header of
// Highway.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
