// What the elements of a tensor are.
#pragma once

namespace segfast {

enum class Dtype : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

}  // namespace segfast
