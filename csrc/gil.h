// Work without Python's global lock.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace pfengine {

// The lock is released for as long as one of these lives.
//
// A daemon thread that wants it back while the interpreter is ending never gets it. Up to Python 3.13 the thread is
// ended there by unwinding its stack, which would abort the process in a destructor. So it waits until the process is
// gone, as Python itself lets it from 3.14 on.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // no C++ exception; it must not leave this block unless it is thrown again
      for (;;) pause();
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace pfengine
