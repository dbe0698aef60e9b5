// SPDX-License-Identifier: MIT
/// \file
/// The library's version, and the inline namespace that keeps incompatible builds apart.
#pragma once

#define TTT_VERSION_MAJOR 0
#define TTT_VERSION_MINOR 1
#define TTT_VERSION_PATCH 0

// Checked and unchecked translation units get different symbols, so mixing them is harmless.
#if defined(TTT_CHECKED)
#define TTT_ABI v0_checked
#else
#define TTT_ABI v0
#endif
