// Arrays of a network's description on the GPU, and its functions of distance.

#pragma once
#include "../../csrc/description.h"
#include "device.h"
#include "task.h"

namespace {

template <class U> void give(OnDevice<U> &to, const Array &from)
{
  std::vector<U> values(from.size());
  from.copy(values.data());
  to.give(values);
  to.wait();
}

class RadialTable {
 public:
  RadialTable(const Record &from, const Device &device) :
      table_(device), segments_(device),
      interval_stride_(static_cast<int>(from.integer("interval_stride"))),
      kind_stride_(static_cast<int>(from.integer("kind_stride")))
  {
    std::vector<Segment> list;
    int intervals = 0;
    const double end = from.number("cutoff");
    for (const Record &segment : from.records("segments")) {
      const int count = static_cast<int>(segment.integer("intervals"));
      list.push_back({segment.number("start"), 0.0, intervals, count});
      intervals += count;
    }
    for (std::size_t n = 0; n < list.size(); n++)
      list[n].per_length = list[n].count /
          ((n + 1 < list.size() ? list[n + 1].start : end) - list[n].start);
    num_segments_ = static_cast<int>(list.size());
    segments_.give(list);
    segments_.wait();
    give(table_, from.array("table"));
  }

  void fill(Task &t) const
  {
    t.table = table_.data();
    t.segments = segments_.data();
    t.num_segments = num_segments_;
    t.interval_stride = interval_stride_;
    t.kind_stride = kind_stride_;
  }

  I bytes() const { return table_.bytes(); }

 private:
  OnDevice<T> table_;
  OnDevice<Segment> segments_;
  int num_segments_, interval_stride_, kind_stride_;
};

}     // namespace
