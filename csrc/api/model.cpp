#include "api/model.hpp"

#include <cmath>
#include <cstring>
#include <map>

#include "api/json.hpp"
#include "host/description.hpp"
#include "host/memory.hpp"
#include "host/names.hpp"

namespace fastrnn {
namespace {

struct Tensor {
  std::string dtype;
  Shape shape;
  const char* data;
};
using Tensors = std::map<std::string, Tensor>;

// ---- safetensors ---------------------------------------------------------------------------------------------------

int64_t whole_number(const Json& j, const char* what) {
  if (j.kind != Json::number || j.value < 0 || j.value > 9e15 || j.value != std::floor(j.value))
    throw BadModel(std::string("the file is damaged: ") + what + " is no size");
  return int64_t(j.value);
}
int64_t size_of(const std::string& dtype) {
  return dtype == "F64" || dtype == "I64" || dtype == "U64" ? 8 : dtype == "F32" || dtype == "I32" || dtype == "U32" ? 4 : 0;
}

Tensor tensor_of(const std::string& name, const Json& j, const char* data, size_t size) {
  const Json *dtype = j.find("dtype"), *shape = j.find("shape"), *offsets = j.find("data_offsets");
  if (!dtype || !shape || !offsets || shape->kind != Json::list || offsets->items.size() != 2)
    throw BadModel("the file is damaged: " + name + " has no dtype, shape or offsets");
  Tensor t{dtype->word, {}, data};
  const int64_t item = size_of(t.dtype);
  if (!item) throw UnsupportedModel(name + " is of " + t.dtype + "; models are of F32 or F64");
  int64_t bytes = item;
  for (const Json& extent : shape->items) t.shape.push_back(whole_number(extent, "an extent")), bytes = times(bytes, t.shape.back());
  const int64_t first = whole_number(offsets->items[0], "an offset"), last = whole_number(offsets->items[1], "an offset");
  if (first > last || uint64_t(last) > size || last - first != bytes)
    throw BadModel("the file is damaged: " + name + " of shape " + text_of(t.shape) + " does not lie in it");
  t.data += first;
  return t;
}

Json header_of(const char* bytes, size_t size, Tensors& tensors) {
  uint64_t length = 0;
  if (size < 8) throw BadModel("the file is too short to be a safetensors file");
  for (int i = 7; i >= 0; i--) length = length << 8 | uint8_t(bytes[i]);
  if (length > size - 8) throw BadModel("the file is no safetensors file, or its end is missing");
  const Json header = JsonReader::read(bytes + 8, size_t(length));
  if (header.kind != Json::object) throw BadModel("the file is damaged: its header is no JSON object");
  std::string described;
  for (const auto& [name, entry] : header.members) {
    if (name != "__metadata__") {
      tensors[name] = tensor_of(name, entry, bytes + 8 + length, size - 8 - size_t(length));
      continue;
    }
    if (const Json* const ours = entry.find("fastrnn")) described = ours->word;
  }
  if (described.empty()) throw UnsupportedModel("the file does not say what layers it holds: write it with fastrnn.save(path, layers)");
  return JsonReader::read(described.data(), described.size());
}

// ---- options -------------------------------------------------------------------------------------------------------

// The arguments of a layer, as Python has them.
struct Options {
  const Json& j;
  const std::string& layer;

  [[noreturn]] void refuse(const std::string& name) const { throw BadModel("the file is damaged: " + layer + " has no right " + name); }
  const Json* find(const char* name) const {
    const Json* const found = j.find(name);
    return found && found->kind != Json::nothing ? found : nullptr;
  }
  int64_t size(const char* name, int64_t otherwise = -1) const {
    const Json* const found = find(name);
    if (!found && otherwise < 0) refuse(name);
    return found ? whole_number(*found, name) : otherwise;
  }
  bool flag(const char* name, bool otherwise) const {
    const Json* const found = find(name);
    if (found && found->kind != Json::truth) refuse(name);
    return found ? found->flag : otherwise;
  }
  double probability(const Json* found, const char* name) const {
    if (found && (found->kind != Json::number || !(found->value >= 0 && found->value <= 1))) refuse(name);
    return found ? found->value : 0;
  }
};

ChosenActivation activation_of(const Json& j, const Options& options) {
  if (j.kind == Json::text) return {j.word, 0, 0};
  if (j.kind != Json::list || j.items.empty() || j.items.size() > 3 || j.items[0].kind != Json::text) options.refuse("activations");
  double numbers[2] = {0, 0};
  for (size_t i = 1; i < j.items.size(); i++) {
    if (j.items[i].kind != Json::number) options.refuse("activations");
    numbers[i - 1] = j.items[i].value;
  }
  return {j.items[0].word, numbers[0], numbers[1]};
}

// The activations of one direction; an RNN has one, which stands there without a list around it.
std::vector<ChosenActivation> side_of(const Json& j, const Options& options, bool rnn) {
  if (rnn) return {activation_of(j, options)};
  std::vector<ChosenActivation> side;
  if (j.kind != Json::list) options.refuse("activations");
  for (const Json& one : j.items) side.push_back(activation_of(one, options));
  return side;
}

// Of h and of c.
std::pair<double, double> zoneout_of(const Options& options) {
  const Json* const given = options.find("zoneout");
  if (!given || given->kind != Json::list) {
    const double both = options.probability(given, "zoneout");
    return {both, both};
  }
  if (given->items.size() != 2) options.refuse("zoneout");
  return {options.probability(&given->items[0], "zoneout"), options.probability(&given->items[1], "zoneout")};
}

// What makes the cell a general one, as python/fastrnn/options.py tells it; nothing if it is a usual one.
std::optional<General> general_of(const Options& options, const std::string& cell) {
  const bool rnn = cell.rfind("rnn", 0) == 0, lstm = cell == "lstm";
  const Json* const given = options.find(rnn ? "nonlinearity" : "activations");
  const std::string usual_rnn = cell == "rnn_relu" ? "relu" : "tanh";
  std::vector<std::vector<ChosenActivation>> sides;
  if (!given || (rnn && given->kind == Json::text && given->word == usual_rnn)) {  // the usual ones
  } else if (given->kind == Json::object) {
    for (const char* const name : {"forward", "reverse"}) {
      const Json* const side = given->find(name);
      if (!side) options.refuse("activations");
      sides.push_back(side_of(*side, options, rnn));
    }
  } else {
    sides.push_back(side_of(*given, options, rnn));
  }
  const Json* const clip = options.find("clip");
  if (clip && (clip->kind != Json::number || !(clip->value > 0))) options.refuse("clip");
  const bool coupled = options.flag("coupled", false), peephole = options.flag("peephole", false);
  const std::pair<double, double> zoneout = zoneout_of(options);
  const bool noisy =
      zoneout.first > 0 || zoneout.second > 0 || options.probability(options.find("recurrent_dropout"), "recurrent_dropout") > 0;
  if (sides.empty() && !clip && !coupled && !peephole && !noisy && cell != "rnn_general") return std::nullopt;
  if (sides.empty() && rnn) sides.push_back({{usual_rnn, 0, 0}});
  if (sides.empty()) sides.push_back({{"sigmoid", 0, 0}, {"tanh", 0, 0}});
  if (lstm && !given) sides[0].push_back({"tanh", 0, 0});
  for (const auto& side : sides)
    if (side.size() != (rnn ? 1u : lstm ? 3u : 2u)) options.refuse("activations");
  return General{clip ? clip->value : INFINITY, coupled, peephole, sides, {zoneout.first, zoneout.second}};
}

// ---- parts ---------------------------------------------------------------------------------------------------------

// The numbers of an array, which in the file need not be aligned.
// Each array is used once: a file must not take more memory than it has bytes.
template <class Real> std::vector<Real> numbers(Tensors& tensors, const std::string& name, const Shape& shape) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw BadModel("the file does not fit together: " + name + " is missing, or used twice");
  const Tensor t = found->second;
  const char* const wanted = sizeof(Real) == 4 ? "F32" : "F64";
  if (t.shape != shape || t.dtype != wanted)
    throw BadModel("the file does not fit together: " + name + " is " + t.dtype + " of shape " + text_of(t.shape) + " but must be " +
                   wanted + " of shape " + text_of(shape));
  int64_t count = 1;
  for (const int64_t extent : shape) count = times(count, extent);
  std::vector<Real> values(static_cast<size_t>(count));
  std::memcpy(values.data(), t.data, values.size() * sizeof(Real));
  tensors.erase(found);
  return values;
}

// The weights packed, in fewer bits if so.
template <class Real>
std::unique_ptr<FrozenWeights<Real>> freeze(const Stack& n, const std::vector<Parameters<const Real>>& weights,
                                            const std::optional<KeptAs>& kept_as) {
  if (!kept_as) return std::make_unique<FrozenWeights<Real>>(n, weights.data());
  const NarrowFormats formats{kept_as->ih, kept_as->hh, &choose_products(*n.isa, nullptr)};
  return std::make_unique<FrozenWeights<Real>>(n, weights.data(), &formats);
}
template <class Real> void check_kept_as(const KeptAs& kept_as, const ParameterShape& p, const std::string& name, const Shape& shape,
                                         const std::vector<Real>& values) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    const bool input = p.which == weight_ih;
    if (!input && p.which != weight_hh && p.which != weight_hr) return;
    const std::string why = unfit(input ? kept_as.ih : kept_as.hh, values.data(), int64_t(values.size()), shape.back());
    if (!why.empty()) throw UnsupportedModel(name + " " + why);
  }
}

template <class Real> Part<Real> recurrent_part(const Isa& isa, const std::string& cell, const Options& o, Tensors& tensors,
                                                const std::string& prefix, const std::optional<KeptAs>& kept_as) {
  bool known = false;  // among the names that files have: the core has more
  for (const char* const name :
       {"rnn_tanh", "rnn_relu", "rnn_general", "gru", "gru_original", "lstm", "slstm", "slstm_exponential", "gru_norm", "lstm_norm"})
    known |= cell == name;
  if (!known) throw UnsupportedModel(o.layer + " has the cell '" + cell + "', which this version does not know");
  const auto general = general_of(o, cell);
  const int64_t P = o.size("proj_size", 0), H = o.size("hidden_size"), I = o.size("input_size"), L = o.size("num_layers", 1);
  const bool both = o.flag("bidirectional", false);
  if (I < 1 || H < 1 || L < 1 || L > 1024 || P > H) throw BadModel("the file is damaged: " + o.layer + " has impossible sizes");
  Stack n{{cell_named(cell, P > 0, general.has_value()), I, H, P > 0 ? P : H, L, both ? 2 : 1}, &isa};
  for (int side = 0; general && side < n.D; side++) n.options[side] = options_of(*general, side);
  const Kernel<Real>& kernel = *table_of<Real>(isa).cell[int(n.cell)];
  const Has has{o.flag("bias", true), P > 0, general && general->peephole, kernel.norms};
  n.heads = heads_of(o.size("heads", 1), H, has.projection);
  if (!kernel.forward)  // the library has all of them
    throw UnsupportedModel(o.layer + " has the cell " + cell_names[int(n.cell)] + " in " + (sizeof(Real) == 4 ? "float32" : "float64") +
                           ", which this build of fastrnn leaves out");
  std::vector<std::vector<Real>> keep;
  std::vector<Parameters<const Real>> weights(size_t(L * n.D), Parameters<const Real>{});
  for (int64_t i = 0; i < L * n.D; i++)
    for_each_parameter(has, [&](const ParameterShape& p) {
      const std::string name = prefix + p.name + "_l" + std::to_string(i / n.D) + (i % n.D ? "_reverse" : "");
      const Shape shape = shape_of(p, n, i / n.D, kernel.gates);
      keep.push_back(numbers<Real>(tensors, name, shape));
      if (kept_as) check_kept_as(*kept_as, p, name, shape, keep.back());
      weights[size_t(i)][p.which] = keep.back().data();
    });
  Part<Real> part{Part<Real>::recurrent, I, n.D * n.P, n};
  part.frozen = freeze(n, weights, kept_as);
  return part;
}

template <class Real> Part<Real> part_of(const Isa& isa, const Json& entry, Tensors& tensors, const std::optional<KeptAs>& kept_as) {
  const Json *name = entry.find("name"), *type = entry.find("type"), *options = entry.find("options"), *cell = entry.find("cell");
  if (!name || !type || !options || options->kind != Json::object)
    throw BadModel("the file is damaged: a layer has no name, type or options");
  const std::string prefix = name->word.empty() ? "" : name->word + ".";
  const std::string who = type->word + (name->word.empty() ? "" : " " + name->word);
  const Options o{*options, who};
  if (cell && cell->kind == Json::text) return recurrent_part<Real>(isa, cell->word, o, tensors, prefix, kept_as);
  if (type->word == "Embedding") {
    const int64_t V = o.size("num_embeddings"), width = o.size("embedding_dim");
    return {Part<Real>::embedding, V, width, {}, {}, numbers<Real>(tensors, prefix + "weight", {V, width})};
  }
  if (type->word == "Linear") {
    const int64_t in = o.size("in_features"), out = o.size("out_features");
    Part<Real> part{Part<Real>::linear, in, out, {}, {}, numbers<Real>(tensors, prefix + "weight", {out, in})};
    if (o.flag("bias", true)) part.bias = numbers<Real>(tensors, prefix + "bias", {out});
    return part;
  }
  throw UnsupportedModel(who + " is a layer that this version does not know");
}

template <class Real>
void read_parts(Model& model, const Json& layers, Tensors& tensors, const std::optional<KeptAs>& kept_as, std::vector<Part<Real>>& parts) {
  for (const Json& entry : layers.items) {
    parts.push_back(part_of<Real>(*model.isa, entry, tensors, kept_as));
    const Part<Real>& part = parts.back();
    if (part.kind == Part<Real>::recurrent && part.stack.D == 2) model.causal = false;
    if (parts.size() == 1) continue;
    if (part.kind == Part<Real>::embedding) throw UnsupportedModel("an Embedding must be the first layer of a model");
    if (part.inputs != parts[parts.size() - 2].outputs)
      throw BadModel("the file does not fit together: a layer of " + std::to_string(part.inputs) + " inputs follows one of " +
                     std::to_string(parts[parts.size() - 2].outputs) + " outputs");
  }
}

std::unique_ptr<Model> build(const Isa& isa, const char* bytes, size_t size, const std::optional<KeptAs>& kept_as) {
  Tensors tensors;
  const Json description = header_of(bytes, size, tensors);
  const Json *format = description.find("format"), *layers = description.find("layers");
  if (!format || !layers || layers->items.empty()) throw BadModel("the file is damaged: its description names no format and no layers");
  if (whole_number(*format, "its format") > 1)
    throw UnsupportedModel("the file holds weights in fewer bits, or was written by a newer fastrnn");
  auto model = std::make_unique<Model>();
  model->isa = &isa;
  for (const auto& [name, t] : tensors) model->f64 = t.dtype == "F64";
  if (model->f64 && kept_as) throw UnsupportedModel("only float32 weights are kept in fewer bits, and the model is of float64");
  if (model->f64) read_parts<double>(*model, *layers, tensors, kept_as, model->wide);
  else read_parts<float>(*model, *layers, tensors, kept_as, model->narrow);
  if (!tensors.empty()) throw BadModel("the file does not fit together: its description knows no " + tensors.begin()->first);
  return model;
}

}  // namespace

std::unique_ptr<Model> read_model(const char* bytes, size_t size, const std::optional<KeptAs>& kept_as) {
  const Isa& isa = choose_isa(nullptr);  // whose error is about the environment
  try {
    return build(isa, bytes, size, kept_as);
  } catch (const std::invalid_argument& error) {
    throw BadModel(std::string("the file is damaged: ") + error.what());
  } catch (const std::overflow_error& error) { throw BadModel(std::string("the file is damaged: ") + error.what()); }
}

}  // namespace fastrnn
