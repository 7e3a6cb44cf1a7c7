#include "attentive.h"

#include <algorithm>

#include "chunks.h"
#include "ragged.h"

namespace pfengine::cpu {
namespace {

constexpr std::int64_t kSumsPerThread = 150000;  // products; below this, waking a thread costs more than it saves

// The work on one chunk of rows, by all members of a team.
class AttentiveRun : public ChunkProducts {
 public:
  using Part = Attentive;

  // A chunk's intermediates.
  struct Space {
    Buffer words;         // what the next product reads
    Buffer hidden;        // float32: narrow states, then outputs of all tokens
    Buffer firsts;        // float32: narrow states of first tokens
    Buffer qkv, queries;  // fp32 or bf16; queries of first tokens only
    Buffer attended;      // fp32, in bf16 bf16
    Buffer attention;     // one row per member of the team
    Buffer factors;       // int8: scales and zero points of the rows of `words`
  };

  static std::int64_t lay_out(char* memory, const Kernels& kernels, const Attentive& part, const Most& most,
                              Space& space) {
    const std::int64_t number = part.precision == Precision::fp32 ? 4 : 2;
    const std::int64_t width = part.output.outputs, attended = part.output.inputs;
    const std::int64_t firsts = part.pooling == TokenPooling::first ? most.tokens : 0;
    Layout layout(memory);
    space.words =
        layout.take(most.tokens, bytes_of(part.precision) * std::max({part.narrow.inputs, width, attended}) + 4);
    space.hidden = layout.take(most.tokens, 4 * width);
    space.firsts = layout.take(firsts, 4 * width);
    space.qkv = layout.take(most.tokens, number * part.qkv.outputs);
    space.queries = layout.take(firsts, number * part.qkv.outputs);
    space.attended = layout.take(most.tokens, 4 * attended);
    space.attention = layout.take(most.members, kernels.attention_scratch(most.row_tokens, part.head_size, false));
    space.factors = layout.take(2, 4 * most.tokens);
    return layout.used();
  }

  AttentiveRun(const Kernels& kernels, const Attentive& part, const Space& space, const Member& member)
      : ChunkProducts(kernels, {part.precision, part.heads, part.head_size, part.scale}, space.words, space.factors,
                      space.attention, member),
        part_(part),
        space_(space) {}

  // x: of the chunk's `tokens` tokens. starts [rows + 1]: where its rows begin and end; the first begins at x. out: of
  // its first row.
  void run(const float* x, const std::int32_t* starts, std::int64_t rows, float* out) const {
    const std::int64_t start = starts[0], tokens = starts[rows] - start;
    const bool firsts = part_.pooling == TokenPooling::first;
    const std::int64_t size = part_.narrow.inputs, width = part_.output.outputs;
    Target hidden = plain(space_.hidden, false);
    hidden.activation = Activation::tanh;
    multiply(to_words(x, size, tokens, size), part_.narrow, hidden);
    const float* states = space_.hidden.row<float>(0);
    const std::int64_t stride = space_.hidden.stride / 4;
    multiply(to_words(states, stride, tokens, width), part_.qkv, plain(space_.qkv, bf16()),
             firsts ? key_value_panels() : panels_of(part_.qkv.outputs));
    if (firsts) {
      gather(states, stride, starts, start, rows, width, space_.firsts);
      multiply(to_words(space_.firsts.row<float>(0), space_.firsts.stride / 4, rows, width), part_.qkv,
               plain(space_.queries, bf16()), query_panels());
    }
    attend(rows, firsts ? space_.queries : space_.qkv, space_.qkv, space_.attended, [&](std::int64_t i) {
      const std::int64_t first = starts[i] - start, length = starts[i + 1] - starts[i];
      return firsts ? Span{first, length, i, 1} : Span{first, length, first, length};
    });
    if (firsts) {
      multiply(attended_words(space_.attended, rows), part_.output, {out, width, false, Activation::none, nullptr, 0});
      return;
    }
    multiply(attended_words(space_.attended, tokens), part_.output, plain(space_.hidden, false));
    member_.each(rows, [&](std::int64_t i) {
      float* most = out + i * width;
      std::copy_n(space_.hidden.row<float>(starts[i] - start), width, most);
      for (std::int64_t token = starts[i] - start + 1; token < starts[i + 1] - start; ++token) {
        const float* y = space_.hidden.row<float>(token);
        for (std::int64_t k = 0; k < width; ++k)
          most[k] = y[k] > most[k] || y[k] != y[k] ? y[k] : most[k];  // keeps nan
      }
    });
    member_.wait();
  }

 private:
  const Attentive& part_;
  const Space space_;
};

}  // namespace

void run_attentive(const Kernels& kernels, const Attentive& attentive, const Context& context, float* out,
                   int threads) {
  const std::int32_t* starts = context.cu_seqlens;
  check_ends(starts, context.rows, context.tokens);
  check_order(starts, context.rows, 1);
  const std::int64_t size = attentive.narrow.inputs, width = attentive.output.outputs;
  // a team shares the panels of the narrow states, so that it has no use for more members than there are of these
  const std::int64_t teams =
      std::clamp<std::int64_t>(context.tokens / kTeamTokens, 1, std::max<std::int64_t>(1, context.rows));
  const std::int64_t most = std::min<std::int64_t>(threads, teams * kernels.panels(width));
  const int used = threads_for(1.0 * context.tokens * width * (size + attentive.qkv.outputs), kSumsPerThread,
                               static_cast<int>(most));
  const Workload work{starts, nullptr, context.rows, longest_row(starts, context.rows)};
  run_chunks<AttentiveRun>(kernels, attentive, work, used, [&](const AttentiveRun& run, const Chunk& chunk) {
    run.run(context.x + starts[chunk.first_row] * size, starts + chunk.first_row, chunk.last_row - chunk.first_row,
            out + chunk.first_row * width);
  });
}

}  // namespace pfengine::cpu
