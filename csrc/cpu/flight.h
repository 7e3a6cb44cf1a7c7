// A batch under way: rows at one layer with all they carry. pfengine/ops/flight.py says what it offers.
//
// Units are what is scored and may leave: rows, or words where the head scores tokens. A word is scored by its first
// piece, and leaves with all its pieces.
#pragma once

#include <cstdint>
#include <vector>

#include "criterion.h"
#include "model.h"
#include "scratch.h"

namespace pfengine::cpu {

// By slot: logits [slots, labels] and exit layers [slots], 1-based.
struct Answers {
  float* logits;
  std::int64_t* layers;
};

// The bounds of the rows' words [rows + 1]. Throws std::invalid_argument where cu_seqlens or pieces say what cannot be,
// or a row has no word.
std::vector<std::int32_t> word_bounds_of(const Batch& batch);

class Flight {
 public:
  // The rows of a batch before layer 1. slots [rows]: the slots of rows, or of their first words; the slots of the
  // other words follow. Throws std::out_of_range for an id outside its table, std::invalid_argument for a wrong
  // cu_seqlens or pieces.
  Flight(const Kernels& kernels, const Model& model, const Batch& batch, const std::int64_t* slots,
         const Answers& answers, int threads);

  // Goes on to layer `until`, or to the last one. scores: is the exit after `until` computed where it is not tested?
  // If not, rows stay even after the last layer. A unit's numbers have the same bits in every batch.
  void advance(const ExitRule& rule, std::int64_t until, bool scores, int threads);

  // Units where gone [units] is set leave. answered: their answer is the scores of this layer, so that scored() must
  // be true; otherwise they get none.
  void leave(const std::uint8_t* gone, bool answered, int threads);

  // Takes in the rows of another flight through the same model, at the same layer; it is empty afterwards.
  // Throws std::invalid_argument where their criteria carry different numbers.
  void join(Flight& other, int threads);

  void clear() { rows_ = held_ = 0; }

  std::int64_t layer() const { return layer_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t units() const { return by_token_ ? at_.word_bounds[rows_] : rows_; }
  const Model& model() const { return model_; }

  const std::int64_t* slots() const { return at_.slots; }  // of rows
  const std::int64_t* unit_slots() const { return by_token_ ? at_.unit_slots : at_.slots; }
  bool scored() const { return scored_; }
  const float* logits() const { return at_.logits; }                                   // [units, labels]
  const float* learned() const { return exit_has_learned() ? at_.learned : nullptr; }  // [units]
  std::int64_t state_count() const;  // rows, or tokens where the head reads all of them
  void states(float* out) const;     // [state_count, H]

 private:
  // With fewer rows layers are computed in one piece: reading the weights twice costs more than a row that leaves
  // saves.
  static constexpr std::int64_t kMinRowsToHalve = 3;

  struct Size {
    std::int64_t rows, tokens, words;  // words: 0 where rows are scored
  };

  // What is computed anew goes to `next_...`, and then the two are swapped.
  struct Arrays {
    float *x, *next_x;  // [tokens, H]
    float* read;        // [rows, H or w]: first tokens of a half-done layer, means, or what attentive exits read
    char* kept;         // [tokens, kept_stride]: keys and values of a half-done layer
    float *past, *next_past, *add;       // [units, width of the past]
    float *logits, *learned;             // [units, labels], [units]
    float* decide_scratch;               // for `decide`
    std::int32_t *bounds, *next_bounds;  // [rows + 1]
    std::int64_t *slots, *unit_slots;    // [rows]; [words]
    std::int64_t* held;                  // [rows]: the number of each row among the rows that x holds
    std::int64_t* ids;                   // [rows]: for `compact`
    std::uint8_t *leave, *stay;          // [units]; [rows]
    std::int32_t* word_bounds;           // [rows + 1]
    std::int32_t *first, *pieces;        // [words]: the token that is the first piece; how many pieces there are
    std::uint8_t *gone, *frozen;         // [words]: has it left? [tokens]: is it frozen?
    float* sums;                         // [tokens, H]: the input of each token's last output norm
    std::int32_t *queries, *ends;        // [tokens]; [rows + 1]
    std::int32_t* waiting;               // [words]: those that have not left
  };

  std::int64_t lay_out(char* memory, const Size& size);
  void reserve(const Size& size);
  void append(const Arrays& from, const Size& size);

  const std::int32_t* bounds() const { return at_.bounds; }
  const Layer& current() const { return model_.layers[layer_ - 1]; }
  bool last() const { return layer_ == model_.num_layers(); }
  bool exit_has_learned() const { return layer_ && current().exit && current().exit->learned; }
  Context context() const { return {at_.x, at_.bounds, held_, at_.bounds[held_]}; }

  void check(const ExitRule& rule, std::int64_t until) const;
  void finish_layer(int threads);
  void run_layer(const ExitRule& rule, bool stops, bool scores, int threads);
  void run_rows(bool answer, int threads);
  void run_tokens(bool answer, bool freezes, int threads);
  // Is the exit after this layer computed, for its scores or for a past that a later exit adds to?
  bool needs_exit(bool answer) const { return current().exit && (answer || model_.carries(layer_)); }
  void score(const float* x, std::int64_t tokens, const std::int32_t* starts, std::int64_t count,
             const std::int32_t* units, bool answer, int threads);
  void score_states(const float* x, std::int64_t tokens, const std::int32_t* starts, std::int64_t count,
                    const std::int32_t* units, bool answer, int threads);
  const float* seen(const float* x, const std::int32_t* tokens, std::int64_t count, int threads);
  void decide_leaving(const ExitRule& rule, int threads);
  std::int64_t list_tokens(std::uint8_t frozen);
  std::int64_t list_waiting();
  float* state_of(const ExitRule& rule);
  void write_answer(std::int64_t scored, std::int64_t slot);
  // Units where gone [units] is set leave, as in `leave`. freezes: are tokens that leave frozen?
  void release(const std::uint8_t* gone, bool answered, bool freezes, int threads);
  void compact_state(const std::uint8_t* gone);
  void join_states(Flight& other);

  const Kernels& kernels_;
  const Model& model_;
  const Answers answers_;
  const bool by_token_;
  const std::int64_t hidden_, labels_;
  std::int64_t layer_ = 0, rows_ = 0;
  std::int64_t held_ = 0;        // rows in x and bounds; some of them may have left since the last `finish_layer`
  bool half_done_ = false;       // are only the first tokens of this layer computed?
  bool scored_ = false;          // are the logits of this layer?
  std::int64_t past_width_ = 0;  // 0: there is no past
  Size size_{0, 0, 0};           // of what is laid out
  Scratch memory_;
  Arrays at_{};
  std::vector<float> state_;  // what the criterion carries, by row or by unit
  StateLayout state_layout_;
};

}  // namespace pfengine::cpu
