// SPDX-License-Identifier: MIT
/// \file
/// Everything a program needs to train a model on this machine's processor, and to read with it.
#pragma once

#include <ttt/outer/evaluation.hpp>
#include <ttt/outer/meta_gradient.hpp>
#include <ttt/outer/trainer.hpp>
#include <ttt/ttt.hpp>
