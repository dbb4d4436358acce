// A network's description: values with names, as eqcalc.engine.description writes them. They are
// looked up where they lie, and texts and arrays are good as long as it is there. All functions throw
// std::runtime_error where the description is not what is asked for.

#pragma once
#include "generated/sizes.h"

namespace {

enum Tag : I { INTEGER = 1, NUMBER, TEXT, ARRAY, LIST, RECORD };

// the engine has no such thing
[[noreturn]] COLD inline void refuse(const char *what, std::string_view name)
{
  throw std::runtime_error(std::string("the engine does not know the ") + what + " '" +
                           std::string(name) + "'");
}

// words of 8 bytes, which need not lie on borders of words
class Words {
 public:
  Words(const char *data, I bytes) : at_(data), end_(data + bytes) {}
  I integer() { return next<I>(); }
  double number() { return next<double>(); }
  COLD std::string_view text()
  {
    const I length = integer();
    return {skip((length + 7) / 8 * 8), static_cast<std::size_t>(length)};
  }
  COLD const char *skip(I bytes)
  {
    if (bytes < 0 || bytes > end_ - at_)
      throw std::runtime_error("the network's description is cut short");
    const char *here = at_;
    at_ += bytes;
    return here;
  }
  bool done() const { return at_ == end_; }

 private:
  const char *at_, *end_;
  template <class U> U next()
  {
    U x;
    std::memcpy(&x, skip(sizeof(U)), sizeof(U));
    return x;
  }
};

// numbers that lie in the description
class Array {
 public:
  COLD explicit Array(Words &words) : shape_(words.integer())
  {
    for (I &length : shape_) length = words.integer();
    data_ = words.skip(size() * 8);
  }
  I size() const
  {
    I product = 1;
    for (const I length : shape_) product *= length;
    return product;
  }
  I length(std::size_t axis) const { return shape_.at(axis); }
  double operator[](I k) const
  {
    double x;
    std::memcpy(&x, data_ + 8 * k, 8);
    return x;
  }
  template <class U> void copy(U *to) const
  {
    for (I k = 0; k < size(); k++) to[k] = static_cast<U>((*this)[k]);
  }

 private:
  std::vector<I> shape_;
  const char *data_;
};

// to the end of a value
COLD inline void pass(Words &words)
{
  const I tag = words.integer();
  if (tag == INTEGER || tag == NUMBER) {
    words.skip(8);
  } else if (tag == TEXT) {
    words.text();
  } else if (tag == ARRAY) {
    Array{words};
  } else if (tag == LIST) {
    for (I n = words.integer(); n > 0; n--) pass(words);
  } else if (tag == RECORD) {
    words.text();
    for (I n = words.integer(); n > 0; n--) {
      words.text();
      pass(words);
    }
  } else {
    throw std::runtime_error("the network's description has an unknown tag");
  }
}

class Record {
 public:
  // words: behind the tag
  COLD explicit Record(Words words) : fields_(words)
  {
    kind_ = fields_.text();
    count_ = fields_.integer();
  }

  std::string_view kind() const { return kind_; }
  COLD bool has(const char *name) const
  {
    Words at = fields_;
    return find(name, at);
  }
  COLD I integer(const char *name) const { return value(name, INTEGER).integer(); }
  COLD double number(const char *name) const { return value(name, NUMBER).number(); }
  COLD std::string_view text(const char *name) const { return value(name, TEXT).text(); }
  COLD Record record(const char *name) const { return Record(value(name, RECORD)); }
  COLD Array array(const char *name) const
  {
    Words at = value(name, ARRAY);
    return Array(at);
  }
  COLD std::vector<double> numbers(const char *name) const { return copied<double>(name); }
  COLD std::vector<int> indices(const char *name) const { return copied<int>(name); }

  COLD std::vector<Record> records(const char *name) const
  {
    std::vector<Record> result;
    each(name, RECORD, [&](Words at) { result.emplace_back(at); });
    return result;
  }
  COLD std::vector<std::string_view> texts(const char *name) const
  {
    std::vector<std::string_view> result;
    each(name, TEXT, [&](Words at) { result.push_back(at.text()); });
    return result;
  }

 private:
  std::string_view kind_;
  I count_;
  Words fields_;

  // whether the field is there; `at` is then its value
  COLD bool find(const char *name, Words &at) const
  {
    for (I n = 0; n < count_; n++) {
      if (at.text() == name) return true;
      pass(at);
    }
    return false;
  }
  [[noreturn]] COLD void fail(const char *name) const
  {
    throw std::runtime_error("the network's description lacks '" + std::string(name) + "' of '" +
                             std::string(kind_) + "'");
  }
  // behind the tag
  COLD Words value(const char *name, Tag tag) const
  {
    Words at = fields_;
    if (!find(name, at) || at.integer() != tag) fail(name);
    return at;
  }
  COLD void each(const char *name, Tag tag, const Callee<Words> &take) const
  {
    Words at = value(name, LIST);
    for (I n = at.integer(); n > 0; n--) {
      Words item = at;
      if (item.integer() != tag) fail(name);
      take(item);
      pass(at);
    }
  }
  template <class U> std::vector<U> copied(const char *name) const
  {
    const Array from = array(name);
    std::vector<U> to(from.size());
    from.copy(to.data());
    return to;
  }
};

// the record that a description is
COLD inline Record read_description(const char *data, I bytes)
{
  Words words(data, bytes), end = words;
  pass(end);
  if (words.integer() == RECORD && end.done()) {
    const Record record(words);
    if (record.integer("version") == DESCRIPTION_VERSION) return record;
  }
  throw std::runtime_error("the network's description was made by another eqcalc");
}

}     // namespace
