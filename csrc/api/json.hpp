// The JSON that describes a model: read whole, nothing written.
#pragma once
#include <charconv>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastrnn {

struct Json {
  enum Kind { nothing, truth, number, text, list, object } kind = nothing;
  bool flag = false;
  double value = 0;
  std::string word;
  std::vector<Json> items;                            // of a list
  std::vector<std::pair<std::string, Json>> members;  // of an object

  const Json* find(const std::string& name) const {
    for (const auto& member : members)
      if (member.first == name) return &member.second;
    return nullptr;
  }
};

// Throws std::invalid_argument with the place of what is wrong.
class JsonReader {
 public:
  static Json read(const char* text, size_t size) {
    JsonReader reader(text, text + size);
    Json whole = reader.value(0);
    reader.skip();
    if (reader.at_ != reader.end_) reader.refuse("more after its end");
    return whole;
  }

 private:
  JsonReader(const char* begin, const char* end) : begin_(begin), at_(begin), end_(end) {}

  [[noreturn]] void refuse(const char* what) const {
    throw std::invalid_argument(std::string("JSON has ") + what + " at byte " + std::to_string(at_ - begin_));
  }
  void skip() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) at_++;
  }
  bool take(char c) {
    skip();
    if (at_ == end_ || *at_ != c) return false;
    at_++;
    return true;
  }
  void expect(char c) {
    if (!take(c)) refuse("another character than expected");
  }
  bool take_word(const char* word) {
    const std::string w(word);
    if (size_t(end_ - at_) < w.size() || w.compare(0, w.size(), at_, w.size()) != 0) return false;
    at_ += w.size();
    return true;
  }

  Json value(int depth) {
    if (depth > 64) refuse("too many levels");
    if (++values_ > most_values) refuse("too many values");
    skip();
    if (at_ == end_) refuse("an early end");
    Json j;
    if (*at_ == '{') return at_++, members(j, depth);
    if (*at_ == '[') return at_++, items(j, depth);
    if (*at_ == '"') return j.kind = Json::text, j.word = string(), j;
    if (take_word("true")) return j.kind = Json::truth, j.flag = true, j;
    if (take_word("false")) return j.kind = Json::truth, j;
    if (take_word("null")) return j;
    return number(j);
  }
  Json members(Json& j, int depth) {
    j.kind = Json::object;
    if (take('}')) return std::move(j);
    std::set<std::string> names;
    do {
      skip();
      if (at_ == end_ || *at_ != '"') refuse("a name that is no text");
      std::string name = string();
      if (!names.insert(name).second) refuse("a name twice");
      expect(':');
      j.members.emplace_back(std::move(name), value(depth + 1));
    } while (take(','));
    expect('}');
    return std::move(j);
  }
  Json items(Json& j, int depth) {
    j.kind = Json::list;
    if (take(']')) return std::move(j);
    do j.items.push_back(value(depth + 1));
    while (take(','));
    expect(']');
    return std::move(j);
  }
  Json number(Json& j) {
    const char* const from = at_;
    while (at_ < end_ && ((*at_ >= '0' && *at_ <= '9') || *at_ == '-' || *at_ == '+' || *at_ == '.' || *at_ == 'e' || *at_ == 'E')) at_++;
    const auto read = std::from_chars(from, at_, j.value);  // strtod heeds the program's language
    if (read.ec != std::errc() || read.ptr != at_) refuse("no value");
    j.kind = Json::number;
    return std::move(j);
  }

  std::string string() {
    std::string s;
    for (at_++; at_ < end_ && *at_ != '"'; at_++) {
      if (*at_ != '\\') {
        s += *at_;
        continue;
      }
      if (++at_ == end_) break;
      constexpr char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
      const char* const letter = std::char_traits<char>::find(letters, 8, *at_);
      if (letter) s += meant[letter - letters];
      else if (*at_ == 'u') unicode(s);
      else refuse("an unknown escape");
    }
    if (at_ == end_) refuse("a text without an end");
    at_++;
    return s;
  }
  unsigned four_digits() {
    if (end_ - at_ < 5) refuse("an early end");
    unsigned code = 0;
    for (int i = 0; i < 4; i++) {
      const char c = *++at_;
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) refuse("an unknown escape");
      code = code * 16 + unsigned(digit);
    }
    return code;
  }
  void unicode(std::string& s) {
    unsigned code = four_digits();
    if (code >= 0xd800 && code < 0xdc00) {
      if (end_ - at_ < 3 || at_[1] != '\\' || at_[2] != 'u') refuse("half a character");
      at_ += 2;
      const unsigned low = four_digits();
      if (low < 0xdc00 || low > 0xdfff) refuse("half a character");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (code < 0x80) return void(s += char(code));
    if (code < 0x800) return void((s += char(0xc0 | code >> 6)) += char(0x80 | (code & 63)));
    if (code >= 0x10000) s += char(0xf0 | code >> 18), s += char(0x80 | (code >> 12 & 63));
    else s += char(0xe0 | code >> 12);
    s += char(0x80 | (code >> 6 & 63)), s += char(0x80 | (code & 63));
  }

  // A value takes some hundred bytes here, and may take two in the text.
  static constexpr int64_t most_values = 2'000'000;
  const char *begin_, *at_, *end_;
  int64_t values_ = 0;
};

}  // namespace fastrnn
