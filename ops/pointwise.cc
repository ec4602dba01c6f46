// Element-by-element ops. Backward needs no data for add, scale and dropout, so their closures hold
// only the gradients of their inputs, never the activations.
#include "ops/check.h"
#include "ops/gradient.h"
#include "ops/ops.h"

namespace moe {

namespace {
void check_same(const char* op, const Tensor& a, const Tensor& b) {
  check(a && b, "{}: an operand is absent", op);
  check(a.shape() == b.shape(), "{}: shapes {} and {} differ", op, a.shape(), b.shape());
  check(a.dtype() == b.dtype() && a.device() == b.device(),
        "{}: operands are {} on {} and {} on {}", op, a.dtype(), a.device(), b.dtype(), b.device());
}
}  // namespace

// da += dy   db += dy
Tensor add(const Tensor& a, const Tensor& b) {
  check_same("add", a, b);
  Tensor y = empty_like(a);
  with_type(a, [&]<class T>(const Kernels<T>& k) {
    k.add(a.view<T>(), b.view<T>(), y.mut_view<T>());
    record({a, b}, y, [&] {
      return [da = gradient_of(a), db = gradient_of(b), &k](const Tensor& dy) {
        if (da) k.accumulate(dy.view<T>(), 1, da.rows<T>());
        if (db) k.accumulate(dy.view<T>(), 1, db.rows<T>());
      };
    });
  });
  return y;
}

// dx += factor dy
Tensor scale(const Tensor& x, double factor) {
  check(bool(x), "scale: the operand is absent");
  Tensor y = empty_like(x);
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    k.scale(x.view<T>(), factor, y.mut_view<T>());
    record({x}, y, [&] {
      return [dx = gradient_of(x), factor, &k](const Tensor& dy) {
        k.accumulate(dy.view<T>(), factor, dx.rows<T>());
      };
    });
  });
  return y;
}

// dx += s dy   ds += sum x dy
Tensor scale_by(const Tensor& x, const Tensor& s) {
  check(x && s && s.size() == 1, "scale_by: needs a tensor and a scalar");
  check(s.dtype() == stat_of(x.dtype()), "scale_by: the scalar is {} beside {}", s.dtype(),
        x.dtype());
  check_device("scale_by", x, {s});
  Tensor y = empty_like(x);
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    k.scale_by(x.view<T>(), s.data<Stat<T>>(), y.mut_view<T>());
    record({x, s}, y, [&] {
      return [x, s, &k](const Tensor& dy) {
        k.scale_by_backward(x.view<T>(), s.data<Stat<T>>(), dy.view<T>(), grad<T>(x),
                            grad<Stat<T>>(s).data);
      };
    });
  });
  return y;
}

// da += dy b   db += dy a
Tensor mul(const Tensor& a, const Tensor& b) {
  check_same("mul", a, b);
  Tensor y = empty_like(a);
  with_type(a, [&]<class T>(const Kernels<T>& k) {
    k.mul(a.view<T>(), b.view<T>(), y.mut_view<T>());
    record({a, b}, y, [&] {
      return [a, b, &k](const Tensor& dy) {
        k.mul_backward(a.view<T>(), b.view<T>(), dy.view<T>(), grad<T>(a), grad<T>(b));
      };
    });
  });
  return y;
}

// dx += f'(x) dy
Tensor activate(Activation f, const Tensor& x) {
  check(bool(x), "activate: the operand is absent");
  Tensor y = empty_like(x);
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    k.activate(f, x.view<T>(), y.mut_view<T>());
    record({x}, y, [&] {
      return [x, f, &k](const Tensor& dy) {
        k.activate_backward(f, x.view<T>(), dy.view<T>(), 1, grad<T>(x));
      };
    });
  });
  return y;
}

// The mask is a function of the counter: drawn again in backward, never stored.
Tensor dropout(const Tensor& x, const Draw& draw, std::uint64_t stream, double rate) {
  check(rate >= 0 && rate < 1, "dropout: the rate {} is outside [0, 1)", rate);
  if (!draw.train || rate == 0) return x;
  Tensor y = empty_like(x);
  Dice dice = draw.dice(stream);
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    k.dropout(x.view<T>(), dice, rate, y.mut_view<T>());
    record({x}, y, [&] {
      return [dx = gradient_of(x), dice, rate, &k](const Tensor& dy) {
        k.dropout_backward(dy.view<T>(), dice, rate, dx.rows<T>());
      };
    });
  });
  return y;
}

Tensor random_uniform(const Shape& shape, DType dtype, Device device, const Dice& dice) {
  Tensor y = empty(shape, dtype, device);
  with_type(y, [&]<class T>(const Kernels<T>& k) { k.random_uniform(dice, y.mut_view<T>()); });
  return y;
}

Tensor random_normal(const Shape& shape, DType dtype, Device device, const Dice& dice) {
  Tensor y = empty(shape, dtype, device);
  with_type(y, [&]<class T>(const Kernels<T>& k) { k.random_normal(dice, y.mut_view<T>()); });
  return y;
}

}  // namespace moe
