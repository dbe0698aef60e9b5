// SPDX-License-Identifier: MIT
// expect: an InPlaceMLP belongs to the prefix
#include <ttt/model/language_model.hpp>

using Block = ttt::Block<ttt::FullAttention<>, ttt::InPlaceMLP<>, ttt::PreNorm>;

int main() {
  return ttt::LanguageModel<ttt::Stack<1, Block>, ttt::Stack<1, Block>>::prefix_depth == 1 ? 0 : 1;
}
