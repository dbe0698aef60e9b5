// SPDX-License-Identifier: MIT
/// \file
/// Everything a program needs to read with a model on this machine's processor.
#pragma once

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/inner/batch.hpp>
#include <ttt/inner/in_place_loop.hpp>
#include <ttt/inner/inner_loop.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/io/byte_tokenizer.hpp>
#include <ttt/io/load.hpp>
#include <ttt/io/load_host.hpp>
#include <ttt/io/save.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/layers/in_place_mlp.hpp>
#include <ttt/model/hosts.hpp>
#include <ttt/model/language_model.hpp>
#include <ttt/model/presets.hpp>
#include <ttt/model/sampler.hpp>
#include <ttt/model/weights.hpp>
#include <ttt/version.hpp>
