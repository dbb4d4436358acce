// A network's description: values with names, as eqcalc.engine.description writes them.
// All functions throw std::runtime_error where the description is not what is asked for.

namespace {

// words of 8 bytes, which need not lie on borders of words
class Words {
 public:
  Words(const char *data, I bytes) : at_(data), end_(data + bytes) {}
  I integer() { return next<I>(); }
  std::string text()
  {
    const I length = integer();
    return {skip((length + 7) / 8 * 8), static_cast<std::size_t>(length)};
  }
  const char *skip(I bytes)
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
  Array() = default;
  explicit Array(Words &words) : shape_(words.integer())
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
  const char *data_ = nullptr;
};

class Record;

struct Value {
  enum Tag { INTEGER = 1, NUMBER, TEXT, ARRAY, LIST, RECORD };
  I tag = 0;
  I integer = 0;
  double number = 0.0;
  std::string text;
  Array array;
  std::vector<Value> list;
  std::shared_ptr<const Record> record;

  explicit Value(Words &words);
};

class Record {
 public:
  explicit Record(Words &words) : kind_(words.text())
  {
    for (I n = words.integer(); n > 0; n--) {
      std::string name = words.text();
      fields_.emplace(std::move(name), Value(words));
    }
  }

  const std::string &kind() const { return kind_; }
  bool has(const char *name) const { return fields_.count(name) > 0; }
  I integer(const char *name) const { return value(name, Value::INTEGER).integer; }
  double number(const char *name) const { return value(name, Value::NUMBER).number; }
  const std::string &text(const char *name) const { return value(name, Value::TEXT).text; }
  const Array &array(const char *name) const { return value(name, Value::ARRAY).array; }
  const Record &record(const char *name) const { return *value(name, Value::RECORD).record; }

  std::vector<double> numbers(const char *name) const
  {
    const Array &from = array(name);
    std::vector<double> to(from.size());
    from.copy(to.data());
    return to;
  }
  std::vector<std::string> texts(const char *name) const
  {
    std::vector<std::string> result;
    for (const Value &v : list(name, Value::TEXT)) result.push_back(v.text);
    return result;
  }
  // of an array of integers
  std::vector<int> indices(const char *name) const
  {
    const Array &from = array(name);
    std::vector<int> to(from.size());
    from.copy(to.data());
    return to;
  }
  std::vector<std::reference_wrapper<const Record>> records(const char *name) const
  {
    std::vector<std::reference_wrapper<const Record>> result;
    for (const Value &v : list(name, Value::RECORD)) result.emplace_back(*v.record);
    return result;
  }

 private:
  std::string kind_;
  std::map<std::string, Value, std::less<>> fields_;

  [[noreturn]] void fail(const char *name) const
  {
    throw std::runtime_error("the network's description lacks '" + std::string(name) + "' of '" +
                             kind_ + "'");
  }
  const Value &value(const char *name, Value::Tag tag) const
  {
    const auto found = fields_.find(name);
    if (found == fields_.end() || found->second.tag != tag) fail(name);
    return found->second;
  }
  const std::vector<Value> &list(const char *name, Value::Tag tag) const
  {
    const auto &values = value(name, Value::LIST).list;
    for (const Value &v : values)
      if (v.tag != tag) fail(name);
    return values;
  }
};

inline Value::Value(Words &words) : tag(words.integer())
{
  if (tag == INTEGER) {
    integer = words.integer();
  } else if (tag == NUMBER) {
    std::memcpy(&number, words.skip(8), 8);
  } else if (tag == TEXT) {
    text = words.text();
  } else if (tag == ARRAY) {
    array = Array(words);
  } else if (tag == LIST) {
    for (I n = words.integer(); n > 0; n--) list.emplace_back(words);
  } else if (tag == RECORD) {
    record = std::make_shared<const Record>(words);
  } else {
    throw std::runtime_error("the network's description has an unknown tag");
  }
}

}    // namespace
