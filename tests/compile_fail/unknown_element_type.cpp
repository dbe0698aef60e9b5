// expect: DTypeOf<long double>
// A type that no file can hold has no DType.
#include <ttt/core/dtype.hpp>

int main() {
  return static_cast<int>(ttt::dtype_of<long double>);
}
