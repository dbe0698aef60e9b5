// SPDX-License-Identifier: MIT
/// \file
/// Reads safetensors files: named tensors with a JSON header, checked before anything is believed.
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <ttt/core/dtype.hpp>
#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/mapped_file.hpp>
#include <ttt/io/utf8.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// The type that safetensors calls by that name.
constexpr std::optional<DType> find_dtype(std::string_view name) {
  for (unsigned i = 0; i <= static_cast<unsigned>(DType::Bool); ++i)
    if (name_of(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  return std::nullopt;
}

/// Bytes of a tensor of that shape; nothing if a length is negative or the strides, zero lengths
/// aside, would overflow Index.
constexpr std::optional<std::size_t> byte_count(std::span<const Index> shape, DType dtype) {
  std::size_t count = size_of(dtype);
  bool empty = false;
  for (const Index length : shape) {
    const std::size_t room = static_cast<std::size_t>(std::numeric_limits<Index>::max()) / count;
    if (length < 0 || static_cast<std::size_t>(length) > room) return std::nullopt;
    if (length == 0) empty = true;
    if (length != 0) count *= static_cast<std::size_t>(length);
  }
  return empty ? 0 : count;
}

}  // namespace detail

namespace io {

/// What a file says about one tensor.
struct TensorInfo {
  std::string name;
  DType dtype = DType::F32;
  std::vector<Index> shape;
  std::size_t begin = 0;  ///< where its bytes lie, counted from the end of the header
  std::size_t end = 0;

  /// Its number of elements.
  std::size_t size() const { return (end - begin) / size_of(dtype); }
};

/// An open safetensors file: its table of tensors, their bytes where they lie, its metadata.
///
/// Opening checks all of the header, so that whatever is handed out later lies inside the file and
/// has the size its shape says. Immutable and free of locks: share it between threads. Views live
/// as long as the object. Errors name the file and the tensor.
class SafeTensors {
  static_assert(std::endian::native == std::endian::little,
                "ttt: safetensors files are read where they lie, which needs a little-endian CPU");

 public:
  static constexpr std::size_t max_header_bytes = 100'000'000;  ///< as the reference program has it
  static constexpr std::size_t max_tensors = std::size_t{1} << 18;
  static constexpr std::size_t max_rank = 8;

  /// Throws Error if the file cannot be read and FormatError if it is not sound. A mapped file must
  /// keep its length while it is open; see Read.
  static std::shared_ptr<const SafeTensors> open(const std::string& path, Read how = Read::Map) {
    return std::shared_ptr<const SafeTensors>(new SafeTensors(MappedFile(path, how)));
  }

  /// All tensors, in the order of their bytes.
  std::span<const TensorInfo> tensors() const { return tensors_; }

  /// The tensor of that name, or nullptr. O(log n).
  const TensorInfo* find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : found->second;
  }

  /// The tensor of that name; throws FormatError if there is none.
  const TensorInfo& at(std::string_view name) const {
    if (const TensorInfo* found = find(name)) return *found;
    reject("has no tensor " + detail::quoted(name));
  }

  /// The bytes of a tensor of this file.
  std::span<const std::byte> bytes(const TensorInfo& info) const {
    if (info.begin > info.end || info.end > data_.size())
      reject(info, "is not a tensor of this file");
    return data_.subspan(info.begin, info.end - info.begin);
  }

  /// Whether as() can show the tensor where it lies. The format does not promise it; files that
  /// write_safetensors() made always can.
  bool aligned(const TensorInfo& info) const {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes(info).data());
    return info.begin == info.end || address % size_of(info.dtype) == 0;
  }

  /// The tensor where it lies, nothing copied. Throws FormatError if the file has another type, or
  /// if the tensor is not aligned: then copy_to() is the way.
  template <class T>
  std::span<const T> as(const TensorInfo& info) const {
    if (info.dtype != dtype_of<T>) reject_type(info, dtype_of<T>);
    if (!aligned(info)) reject(info, "is not aligned for its type, so it can only be copied");
    return {reinterpret_cast<const T*>(bytes(info).data()), info.size()};
  }

  /// Copies a tensor, aligned or not. Any floating-point type of file becomes float or double
  /// (doubles are rounded to float); every other type must be the one that the file has. Throws
  /// ShapeError if the sizes differ, FormatError if the types do.
  template <class T>
  void copy_to(const TensorInfo& info, std::span<T> out) const {
    const std::span<const std::byte> from = bytes(info);
    if (info.size() != out.size())
      detail::fail<ShapeError>(describe(info) + "has " + std::to_string(info.size()) +
                               " elements, the destination " + std::to_string(out.size()));
    if (info.dtype == dtype_of<T>) return convert<T>(from, out);
    if constexpr (std::floating_point<T>) {
      if (info.dtype == DType::F32) return convert<float>(from, out);
      if (info.dtype == DType::F64) return convert<double>(from, out);
      if (info.dtype == DType::F16) return convert<float16>(from, out);
      if (info.dtype == DType::BF16) return convert<bfloat16>(from, out);
    }
    reject_type(info, dtype_of<T>);
  }

  /// The file's free text, name by name: `__metadata__`.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  const std::string& path() const { return file_.path(); }

  /// The whole file, header included.
  std::span<const std::byte> file_bytes() const { return file_.bytes(); }

 private:
  explicit SafeTensors(MappedFile file) : file_(std::move(file)) {
    const Json header = read_header();
    for (const auto& [name, value] : header.object().members()) {
      if (name == "__metadata__") {
        read_metadata(value);
      } else if (tensors_.size() == max_tensors) {
        reject("more than the " + std::to_string(max_tensors) + " tensors allowed");
      } else {
        tensors_.push_back(read_tensor(name, value));
      }
    }
    std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
      return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
    });
    check_cover();
    for (const TensorInfo& info : tensors_) by_name_.emplace(info.name, &info);
  }

  Json read_header() {
    constexpr std::size_t prefix = sizeof(std::uint64_t);
    const std::span<const std::byte> all = file_.bytes();
    if (all.size() < prefix)
      reject("is " + std::to_string(all.size()) + " bytes long, too short for a safetensors file");
    std::uint64_t length = 0;
    std::memcpy(&length, all.data(), prefix);
    if (length > max_header_bytes)
      reject("the header's length is " + std::to_string(length) + ", expected at most " +
             std::to_string(max_header_bytes));
    if (length > all.size() - prefix)
      reject("the header's length is " + std::to_string(length) + ", but only " +
             std::to_string(all.size() - prefix) + " bytes follow");
    data_ = all.subspan(prefix + static_cast<std::size_t>(length));
    const std::string_view text(reinterpret_cast<const char*>(all.data() + prefix),
                                static_cast<std::size_t>(length));
    if (!text.starts_with('{')) reject("the header does not start with '{'");
    return Json::parse(text, path() + ": header", {.depth = 8});
  }

  void read_metadata(const Json& value) {
    const std::string what = path() + ": __metadata__";
    for (const auto& [name, text] : value.object(what).members())
      metadata_.emplace(name, text.string(what + ": " + detail::quoted(name)));
  }

  TensorInfo read_tensor(const std::string& name, const Json& value) const {
    TensorInfo info;
    info.name = name;
    const std::string what = path() + ": tensor " + detail::quoted(name);
    const Json::Object& entry = value.object(what);
    const std::string& dtype = value.at("dtype", what).string(what + ": dtype");
    const Json::Array& shape = value.at("shape", what).array(what + ": shape");
    const Json::Array& offsets = value.at("data_offsets", what).array(what + ": data_offsets");
    if (entry.members().size() != 3)
      reject(info, "has more than the expected dtype, shape and data_offsets");

    const std::optional<DType> known = detail::find_dtype(dtype);
    if (!known) reject(info, "has the unknown dtype " + detail::quoted(dtype));
    info.dtype = *known;
    if (shape.size() > max_rank)
      reject(info, "has " + std::to_string(shape.size()) + " dimensions, expected at most " +
                       std::to_string(max_rank));
    for (const Json& length : shape)
      info.shape.push_back(static_cast<Index>(length.integer(what + ": shape")));
    const std::optional<std::size_t> size = detail::byte_count(info.shape, info.dtype);
    if (!size) reject(info, "has a shape that is negative or too large");

    if (offsets.size() != 2) reject(info, "has data_offsets that are not a pair");
    const std::int64_t begin = offsets[0].integer(what + ": data_offsets");
    const std::int64_t end = offsets[1].integer(what + ": data_offsets");
    if (begin < 0 || end < begin || static_cast<std::uint64_t>(end) > data_.size())
      reject(info, "lies at bytes " + std::to_string(begin) + " to " + std::to_string(end) +
                       ", but the data has " + std::to_string(data_.size()));
    info.begin = static_cast<std::size_t>(begin);
    info.end = static_cast<std::size_t>(end);
    if (info.end - info.begin != *size)
      reject(info, "has " + std::to_string(info.end - info.begin) +
                       " bytes, but its dtype and shape make " + std::to_string(*size));
    return info;
  }

  /// Every byte of the data belongs to exactly one tensor.
  void check_cover() const {
    std::size_t expected = 0;
    for (const TensorInfo& info : tensors_) {
      if (info.begin != expected)
        reject(info, "starts at byte " + std::to_string(info.begin) + ", expected " +
                         std::to_string(expected) + ": tensors overlap or leave a hole");
      expected = info.end;
    }
    if (expected != data_.size())
      reject("the tensors have " + std::to_string(expected) + " bytes, but the data has " +
             std::to_string(data_.size()));
  }

  template <class Source, class T>
  static void convert(std::span<const std::byte> from, std::span<T> out) {
    if constexpr (std::same_as<Source, T>) {
      if (!out.empty()) std::memcpy(out.data(), from.data(), from.size());
    } else {
      for (std::size_t i = 0; i < out.size(); ++i) {
        Source value;
        std::memcpy(&value, from.data() + i * sizeof(Source), sizeof(Source));
        out[i] = static_cast<T>(value);
      }
    }
  }

  std::string describe(const TensorInfo& info) const {
    return path() + ": tensor " + detail::quoted(info.name) + ": ";
  }
  [[noreturn]] void reject(const std::string& why) const {
    detail::fail<FormatError>(path() + ": " + why);
  }
  [[noreturn]] void reject(const TensorInfo& info, const std::string& why) const {
    detail::fail<FormatError>(describe(info) + why);
  }
  [[noreturn]] void reject_type(const TensorInfo& info, DType wanted) const {
    reject(info,
           "is " + std::string(name_of(info.dtype)) + ", expected " + std::string(name_of(wanted)));
  }

  MappedFile file_;
  std::span<const std::byte> data_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string_view, const TensorInfo*> by_name_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace io
}  // namespace ttt::inline TTT_ABI
