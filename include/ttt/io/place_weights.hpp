// SPDX-License-Identifier: MIT
/// \file
/// Weights out of open files: parameters where they lie, or copied where they cannot be used there.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ttt/backend/concepts.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// The part of a file's tensor that one parameter is; without an info, no file has it, and it
/// starts as in_place_start() says.
struct StoredTensor {
  const SafeTensors* file = nullptr;
  const TensorInfo* info = nullptr;
  Index first = 0;          // element of the tensor
  bool transposed = false;  // [out, in], as Hugging Face has it
};

/// Throws FormatError, with both shapes, unless a tensor of the file has the expected one.
inline void check_stored_shape(const SafeTensors& file, const TensorInfo& info,
                               const std::vector<Index>& expected) {
  if (info.shape == expected) return;
  const auto text = [](const std::vector<Index>& sizes) {
    std::string out = "[";
    for (const Index size : sizes) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
    return out + "]";
  };
  detail::fail<FormatError>(file.path() + ": " + info.name + " has the shape " + text(info.shape) +
                            ", expected " + text(expected));
}

/// Weights of `model` that lie where `find(name, shape)` says, a StoredTensor each. Tensors in the
/// backend's own type or in bfloat16 are used where they lie if the backend can read them there and
/// they are aligned; what else is bfloat16 or has another type is copied, once. `owner` keeps the
/// files open. Throws what `find` throws, FormatError for an element type that is no number, Error
/// when memory runs out.
template <class Model, Backend B, class Find>
Weights<Model, B> place_weights(const Model& model, const B& backend,
                                std::shared_ptr<const void> owner, const Find& find) {
  using Scalar = typename B::Scalar;
  enum class How { InPlace, InPlaceNarrow, Copied, CopiedNarrow, Made };
  struct Place {
    StoredTensor at;
    How how;
  };
  auto shapes = model.shapes();
  auto tree = model.template tree<Weight<Scalar>>();
  std::vector<Place> places;
  Index to_copy = 0, narrow_to_copy = 0;
  Model::each(
      [&](const ParameterName& name, const Shape& shape) {
        const StoredTensor at = find(name, shape);
        if (at.info == nullptr) {
          to_copy += shape.size();
          places.push_back({at, How::Made});
          return;
        }
        const bool narrow = at.info->dtype == DType::BF16 && at.file->aligned(*at.info);
        const bool same = at.info->dtype == dtype_of<Scalar> && at.file->aligned(*at.info);
        const How how = narrow ? (B::is_host ? How::InPlaceNarrow : How::CopiedNarrow)
                               : (same && B::is_host ? How::InPlace : How::Copied);
        if (how == How::Copied) to_copy += shape.size();
        if (how == How::CopiedNarrow) narrow_to_copy += shape.size();
        places.push_back({at, how});
      },
      shapes);
  typename Weights<Model, B>::Memory memory;
  memory.buffers.push_back(backend.template allocate<Scalar>(to_copy));
  memory.narrow.push_back(backend.template allocate<bfloat16>(narrow_to_copy));
  Scalar* free = memory.buffers.back().data();
  bfloat16* narrow_free = memory.narrow.back().data();
  std::vector<Scalar> staging;
  std::size_t next = 0;
  Model::each(
      [&](const ParameterName& name, const Shape& shape, Weight<Scalar>& leaf) {
        const auto& [at, how] = places[next++];
        const Index rows = at.transposed ? shape.cols : shape.rows;
        const Index cols = at.transposed ? shape.rows : shape.cols;
        if (how == How::InPlace) {
          leaf = View<const Scalar>(at.file->template as<Scalar>(*at.info).data() + at.first, rows,
                                    cols);
        } else if (how == How::InPlaceNarrow) {
          leaf = View<const bfloat16>(at.file->template as<bfloat16>(*at.info).data() + at.first,
                                      rows, cols);
        } else if (how == How::CopiedNarrow) {
          backend.to_device(at.file->template as<bfloat16>(*at.info).data() + at.first, narrow_free,
                            shape.size());
          leaf = View<const bfloat16>(narrow_free, rows, cols);
          narrow_free += shape.size();
        } else {
          staging.resize(static_cast<std::size_t>(shape.size()));
          if (how == How::Made) {
            for (Index i = 0; i < shape.size(); ++i) {
              staging[static_cast<std::size_t>(i)] =
                  static_cast<Scalar>(in_place_start(name, i / cols, i % cols));
            }
          } else {
            TensorInfo part = *at.info;
            part.begin += static_cast<std::size_t>(at.first) * size_of(part.dtype);
            part.end = part.begin + staging.size() * size_of(part.dtype);
            at.file->template copy_to<Scalar>(part, staging);
          }
          backend.to_device(staging.data(), free, shape.size());
          leaf = View<const Scalar>(free, rows, cols);
          free += shape.size();
        }
        if (at.transposed) leaf = leaf.transpose();
      },
      shapes, tree);
  memory.file = std::move(owner);
  return {model, backend, std::move(tree), std::move(memory)};
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
