// From influence to counts in the browser: the counterpart of allocation/, slopes.py, volumes.py,
// certainty.py and of Drawn.hold, to the row. Flows in: the data of whatif.py and a choice of settings. Flows out: counts,
// or an Error in words where the bounds cannot hold together. Arrays have one entry a domain, in the order of data.domains.
"use strict";
const Allocation = (() => {
  const EPS = 1e-9, LEVEL = 0.05;
  const sum = xs => xs.reduce((a, b) => a + b, 0);
  const dot = (a, b) => a.reduce((total, x, i) => total + x * b[i], 0);
  const clip = (x, low, high) => Math.min(Math.max(x, low), high);
  const nearest = x => Math.floor(x + (0.5 + EPS));
  const whole = x => Math.round(x).toLocaleString("en-US");

  // --- certainty.py ---------------------------------------------------------------------------------------------

  /** Two-sided p of a value against zero by Student's t; 1 where there is no value or no standard error. */
  function pValue(value, se, dof) {
    if (!(Number.isFinite(value) && Number.isFinite(se))) return 1;
    if (se === 0) return value === 0 ? 1 : 0;
    const nu = Number.isFinite(dof) ? dof : 1e9, t2 = (value / se) ** 2;
    const x = nu / (nu + t2), y = t2 / (nu + t2), a = nu / 2;  // p = I_x(a, 1/2); x + y = 1
    const front = Math.exp(-a * Math.log1p(t2 / nu)) * Math.sqrt(y) * gammaRatio(a) / Math.sqrt(Math.PI);
    return x < (a + 1) / (a + 2.5) ? front * fraction(a, 0.5, x) / a : 1 - front * fraction(0.5, a, y) / 0.5;
  }

  /** Gamma(a + 1/2) / Gamma(a): the asymptotic series, reached by recurrence. */
  function gammaRatio(a) {
    let factor = 1;
    for (; a < 40; a += 1) factor *= a / (a + 0.5);
    const u = 1 / a;
    return factor * Math.sqrt(a) * (1 + u * (-1 / 8 + u * (1 / 128 + u * (5 / 1024 + u * (-21 / 32768 + u * (-399 / 262144))))));
  }

  /** The continued fraction of the incomplete beta function (Lentz). */
  function fraction(a, b, x) {
    const tiny = 1e-300;
    let c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (Math.abs(d) < tiny ? tiny : d);
    let h = d;
    for (let m = 1; m < 200000; m++) {
      for (const step of [m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
        -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))]) {
        d = 1 + step * d; c = 1 + step / c;
        d = 1 / (Math.abs(d) < tiny ? tiny : d); c = Math.abs(c) < tiny ? tiny : c;
        h *= d * c;
      }
      if (Math.abs(d * c - 1) < 1e-15) break;
    }
    return h;
  }

  /** Holm's step-down: which hypotheses of "no effect" fall. */
  function holm(p) {
    const order = p.map((_, i) => i).sort((i, j) => p[i] - p[j] || i - j), out = p.map(() => false);
    for (let k = 0; k < p.length && p[order[k]] <= LEVEL / (p.length - k); k++) out[order[k]] = true;
    return out;
  }

  function satterthwaite(variances, dofs) {
    const total = sum(variances);
    if (!Number.isFinite(total)) return 1;
    const spread = sum(variances.map((v, k) => v > 0 ? v * v / dofs[k] : 0));
    return spread > 0 ? total * total / spread : sum(dofs);
  }

  // --- objective.py, influence_matrix.py, moments.py ----------------------------------------------------------------

  /** dO/dL by reference set. */
  function gradient(data, at, weights) {
    const total = sum(weights);
    if (!(total > 0)) throw new Error("Give at least one reference set a positive weight.");
    const share = weights.map(w => w / total);
    if (data.objective === "mean_loss") return share;
    if (data.units) return share.map((w, q) => w / data.units[q]);
    let worst = -1;
    share.forEach((w, q) => { if (w > 0 && (worst < 0 || at.losses[q] > at.losses[worst])) worst = q; });
    return share.map((_, q) => q === worst ? 1 : 0);
  }

  /** The objective's slope by domain on one kind of rows (0 drawn, 1 those that growth would draw): [value, se, dof] each; NaN: not measured. */
  function slopes(at, w, kind) {
    const D = at.step_weights.length, v = at.step_weights, rows = at.rows, variance = at.training.map(packed => form(packed, w));
    const lent = rows.some(n => n > 1);
    return v.map((own, i) => {
      if (at.alpha[kind][i] === null) return [NaN, NaN, NaN];
      const fresh = kind * at.fresh[i];
      const K = rows.map((_, s) => (s < D ? at.centred * own * v[s] : 0)
        - (s === i ? own * (1 - fresh) : s === i + D ? own * fresh : 0));
      const unknown = K.some((k, s) => k !== 0 && rows[s] === 1 && (s % D === i || !lent));
      const parts = K.map((k, s) => unknown && k !== 0 && rows[s] === 1 ? Infinity : k * k * variance[s]);
      const any = K.some(k => k !== 0);
      at.reference[kind][i].forEach((b, q) =>
        parts.push(any && w[q] !== 0 && at.reference_rows[q] === 1 ? Infinity : w[q] * w[q] * b));
      return [dot(w, at.alpha[kind][i]), Math.sqrt(sum(parts)), satterthwaite(parts, at.dof)];
    });
  }

  /** w' M w from the upper triangle of a symmetric M; null: nothing is known, counted as 0. */
  function form(packed, w) {
    if (packed === null) return 0;
    let total = 0, k = 0;
    for (let q = 0; q < w.length; q++)
      for (let p = q; p < w.length; p++) total += (p === q ? 1 : 2) * w[q] * w[p] * packed[k++];
    return total;
  }

  // --- slopes.py --------------------------------------------------------------------------------------------------

  /** The slope that each domain's move acts on: {slope, se, dof, why}. */
  function chosen(growth, drawn, n) {
    const none = why => ({slope: NaN, se: NaN, dof: NaN, why});
    const take = (row, why) => ({slope: row[0], se: row[1], dof: row[2], why});
    return n.map((rows, i) => {
      const g = growth[i], d = drawn[i], grow = g[0], shrink = d[0];
      if (rows === 0) return none("it has no rows, so its influence cannot be measured");
      if (grow < 0 && shrink > 0)
        return clearer(d, g) ? take(d, "less of it lowers the loss (so might more of it, less clearly)")
          : take(g, "more of it lowers the loss (so might less of it, less clearly)");
      if (grow < 0) return take(g, "more of it lowers the loss");
      if (shrink > 0) return take(d, "less of it lowers the loss");
      if (Number.isNaN(grow) && shrink <= 0) return take(d, "repeating it lowers the loss");
      if (Number.isNaN(grow) || Number.isNaN(shrink)) return none("its influence was not measured");
      return none("its rows disagree (neither more unused rows nor fewer drawn ones lower the loss)");
    });
  }

  function clearer(a, b) {
    const p = pValue(...a), q = pValue(...b), size = r => r[1] > 0 ? -Math.abs(r[0]) / r[1] : -Infinity;
    return p !== q ? p < q : size(a) < size(b);
  }

  // --- volumes.py -------------------------------------------------------------------------------------------------

  /** Water-filling: clip(f * weights, lower, upper) with the one f >= 0 at which it sums to `total`. */
  function fill(weights, lower, upper, total) {
    const at = f => weights.map((w, i) => clip(f * w, lower[i], upper[i]));
    const ends = [0];
    weights.forEach((w, i) => { if (w > 0) ends.push(lower[i] / w, upper[i] / w); });
    const levels = [...new Set(ends.filter(Number.isFinite))].sort((a, b) => a - b), sums = levels.map(f => sum(at(f)));
    const last = levels.length - 1;
    if (total <= sums[0] || last === 0) return at(levels[0]);
    if (total >= sums[last]) return at(levels[last]);
    const k = sums.findIndex(s => s >= total);
    return at(levels[k - 1] + (levels[k] - levels[k - 1]) * (total - sums[k - 1]) / (sums[k] - sums[k - 1]));
  }

  /** Integer rows whose volumes sum to `total` as nearly as whole rows allow, the heaviest rows first. */
  function wholeRows(rows, weight, total, lower, upper) {
    const out = lower.slice(), order = rows.map((_, i) => i).sort((i, j) => weight[j] - weight[i] || i - j);
    let left = total - dot(rows, weight);
    for (const i of order) {
      const wanted = rows[i] + left / weight[i];
      out[i] = clip(nearest(wanted), lower[i], upper[i]);
      left = (wanted - out[i]) * weight[i];
    }
    return out;
  }

  /** Smallest and largest row counts from floor, cap and max_repeats. */
  function rowBounds(data, choice, total, held) {
    const {domains: names, sizes, per_row: weight} = data, {floor, cap} = choice;
    if (sum(floor) > 1 + EPS) throw new Error(`The floors sum to ${percent(sum(floor))}, more than the whole mixture.`);
    if (sum(cap) < 1 - EPS) throw new Error(`The caps sum to ${percent(sum(cap))}: less than the whole mixture.`);
    const repeated = sizes.map(n => choice.max_repeats * n);
    names.forEach((name, i) => {
      if (floor[i] > cap[i] + EPS) throw new Error(`The floor of ${name} is above its cap.`);
      if (held && floor[i] * total > repeated[i] * weight[i] + weight[i])
        throw new Error(`The floor of ${name} asks for ${whole(floor[i] * total / weight[i])} rows; its pool gives ${whole(repeated[i])}.`);
    });
    const most = repeated.map((n, i) => Math.min(cap[i] < 1 ? cap[i] * total / weight[i] : Infinity, n));
    if (held && dot(most, weight) < total - Math.max(...weight) / 2 - EPS * total)
      throw new Error(`The budget is ${whole(total)}; within the caps and repetitions the pools give ${whole(dot(most, weight))}.`);
    const exact = floor.map((f, i) => f * total / weight[i]);
    let lower = exact.map(x => Math.ceil(x - EPS * (1 + x))), upper = most.map(x => Math.floor(x + EPS * (1 + x)));
    if (dot(lower, weight) > total) lower = exact.map(Math.floor);
    if (dot(upper, weight) < total) upper = most.map((x, i) => Math.min(Math.ceil(x), repeated[i]));
    return [lower.map((x, i) => Math.min(x, upper[i])), upper];
  }

  const percent = share => `${Number((100 * share).toPrecision(4))}%`;

  // --- allocation/rules.py ----------------------------------------------------------------------------------------

  const RETURNS = 0.7, TURNS = 300, LEAST = 1 / 16, SHORTEST = 1e-6;

  /** The changes that the movers ask for, of their slopes and shares. */
  const rules = {
    scaled: (slope, share, m) => {
      const largest = Math.max(...slope.map(Math.abs));
      return slope.map(s => -m * (s / largest));
    },
    exponentiated: (slope, share, m) => {
      const byShare = slope.map((s, i) => s / share[i]), largest = Math.max(...byShare.map(Math.abs));
      return byShare.map(d => Math.expm1(-Math.log1p(m) * (d / largest)));
    },
    equalise: (slope, share, m, whole) => {
      const grows = slope.map(s => s < 0);
      const factor = slope.map((s, i) => whole < 0
        ? Math.pow(clip(1 + s / share[i] / Math.min(whole, -1e-300), 0, 1e300), RETURNS) : grows[i] ? 1 + m : 0);
      if (grows.every(x => x) || !grows.some(x => x)) return factor.map(f => clip(f, 1 / (1 + m), 1 + m) - 1);
      const at = f => share.map((s, i) => s * f(i));
      return fill(at(i => factor[i]), at(() => 1 / (1 + m)), at(() => 1 + m), sum(share)).map((x, i) => x / share[i] - 1);
    },
  };

  /** By the fitted curves at a volume: the objective of weights w, and what one more unit of each domain takes off it. */
  function onCurves(curves, w, volume) {
    const reach = curves.pull.map((pull, q) => 1 + Math.max(curves.apart[q] + dot(pull, volume), 0));
    const loss = reach.map((x, q) => w[q] * curves.base[q] * Math.pow(x, -curves.power[q]));
    const steep = reach.map((x, q) => w[q] * curves.base[q] * curves.power[q] * Math.pow(x, -curves.power[q] - 1));
    return [sum(loss), volume.map((_, i) => sum(steep.map((s, q) => s * curves.pull[q][i])))];
  }

  /** Changes of all domains, to equal gains along the curves. */
  function along(curves, slope, share, moves, m) {
    const one = moves.every((mover, i) => !mover || slope[i] < 0) || moves.every((mover, i) => !mover || !(slope[i] < 0));
    const rest = moves.map((mover, i) => !mover && share[i] > 0 && one), free = moves.map((mover, i) => mover || rest[i]);
    const picked = xs => xs.filter((_, i) => free[i]), whole = sum(picked(share)), inRest = share.map((s, i) => rest[i] ? s : 0);
    const low = picked(share).map(s => s / (1 + m)), high = picked(share).map(s => s * (1 + m));
    let factor = share.map(() => 1), length = 1, [value, gain] = curves(factor);
    for (let turn = 0; turn < TURNS; turn++) {
      if (rest.some(x => x)) { const joined = dot(gain, inRest) / sum(inRest); gain = gain.map((g, i) => rest[i] ? joined : g); }
      const now = share.map((s, i) => s * factor[i]), mean = dot(picked(gain), picked(now)) / whole;
      const scale = Math.max(mean, dot(picked(gain).map(g => Math.abs(g - mean)), picked(now)) / whole);
      if (!(scale > 0)) break;
      const pull = gain.map(g => Math.sqrt(Math.max(1 + (g - mean) / scale, LEAST)));
      length = Math.min(1, 2 * length);
      for (;;) {
        const filled = fill(picked(now.map((x, i) => x * Math.pow(pull[i], length))), low, high, whole);
        const next = factor.map((f, i) => free[i] ? filled.shift() / share[i] : f), [lower, ahead] = curves(next);
        if (lower < value) { factor = next; value = lower; gain = ahead; break; }
        length /= 2;
        if (length < SHORTEST) return factor.map(f => f - 1);
      }
    }
    return factor.map(f => f - 1);
  }

  // --- allocation/step.py -----------------------------------------------------------------------------------------

  /** Changes of volume that sum to zero: growers take what shrinkers give, within their rooms. */
  function exchange(beta, volume, room, frozen) {
    const side = sign => beta.map((b, i) => Math.max(sign * b, 0) * volume[i]);
    let grow = side(1), shrink = side(-1);
    if (grow.some(x => x !== 0) !== shrink.some(x => x !== 0)) {
      const largest = Math.max(...beta.map(Math.abs)), rest = beta.map((b, i) => b === 0 && !frozen[i] ? volume[i] * largest : 0);
      if (!rest.some(x => x !== 0)) {
        const mean = dot(beta, volume) / sum(volume.filter((_, i) => beta[i] !== 0));
        beta = beta.map(b => b !== 0 ? b - mean : 0);
        grow = side(1); shrink = side(-1);
      } else if (grow.some(x => x !== 0)) shrink = rest;
      else grow = rest;
    }
    const take = grow.map((x, i) => Math.min(x, room[0][i])), give = shrink.map((x, i) => Math.min(x, room[1][i]));
    const traded = Math.min(sum(take), sum(give)), zero = volume.map(() => 0);
    const taken = fill(grow, zero, take, traded), given = fill(shrink, zero, give, traded);
    return taken.map((x, i) => x - given[i]);
  }

  /** First-order change of a loss under relative changes, and its error: [value, se]; by domain where asked. */
  function predict(of, beta, byDomain = false) {
    const acting = beta.map((b, i) => b > 0 && Number.isFinite(of.growth[i][0]) ? of.growth[i] : of.drawn[i]);
    const parts = beta.map((b, i) => (acting[i][0] || 0) * b);
    return byDomain ? parts : [sum(parts), Math.sqrt(sum(beta.map((b, i) => ((finite(acting[i][1]) || 0) * b) ** 2)))];
  }

  const finite = x => x === Infinity ? Number.MAX_VALUE : x;  // as numpy's nan_to_num

  /** The step's changes of volume within the no-regression limits: without the harmful moves, or shorter. */
  function withinLimits(step, volume, loss, limits, calibration) {
    const relative = change => change.map((c, i) => volume[i] > 0 ? c / volume[i] : 0);
    const broken = change => limits.map(limit => [limit, predict(limit, relative(change))])
      .filter(([limit, [rise, error]]) => rise > 1.645 * error && rise * calibration > Math.max(limit.allowance, 0) * (1 + 1e-9))
      .map(([limit, [rise]]) => [limit, rise * calibration]);
    let frozen = volume.map(() => false);
    const change = step(frozen), over = broken(change);
    if (!over.length) return change;
    const factor = Math.min(...over.map(([limit, rise]) => Math.max(limit.allowance, 0) / rise)), shortened = change.map(c => c * factor);
    let trimmed = change;
    for (let still = over; still.length; still = broken(trimmed)) {
      for (const [limit] of still) {
        const harms = predict(limit, relative(trimmed), true);
        frozen = frozen.map((f, i) => f || harms[i] > 0);
      }
      trimmed = step(frozen);
    }
    return predict(loss, relative(trimmed))[0] < predict(loss, relative(shortened))[0] ? trimmed : shortened;
  }

  /** One step from counts `n`: {rows, slope, se, gated, why}. */
  function allocate(data, at, choice, n) {
    const weight = data.per_row, w = gradient(data, at, choice.weights), drawn = slopes(at, w, 0);
    const growth = data.drawn_only ? drawn.map(() => [NaN, NaN, NaN]) : slopes(at, w, 1);
    const picked = chosen(growth, drawn, n), slope = picked.map(x => x.slope);
    const p = picked.map(x => pValue(x.slope, x.se, x.dof)), clear = holm(p);
    const open = at.rule === "curves" && clear.some(x => x);
    const gated = slope.map((s, i) => choice.gate && !Number.isNaN(s) && !(open ? Number.isFinite(picked[i].se) : clear[i]));
    const moves = slope.map((s, i) => !Number.isNaN(s) && !gated[i] && s !== 0);
    const volume = n.map((x, i) => x * weight[i]), movers = xs => xs.filter((_, i) => moves[i]);
    let total = sum(volume);
    const share = volume.map(x => x / total);
    let beta = volume.map(() => 0);
    if (at.rule === "curves" && moves.some(x => x))
      beta = along(factor => onCurves(at.curves, w, volume.map((x, i) => x * factor[i])), slope, share, moves, choice.m);
    else if (moves.some(x => x)) {
      const asked = rules[at.rule](movers(slope), movers(share), Math.min(choice.m, at.most_m ?? Infinity), dot(w, at.whole));
      beta = moves.map(mover => mover ? asked.shift() : 0);
    }
    if (!data.hold) total = sum(volume.map((x, i) => clip((1 + beta[i]) * x, 0, choice.max_repeats * data.sizes[i] * weight[i])));
    let [lower, upper] = rowBounds(data, choice, total, data.hold);
    lower = lower.map((x, i) => Math.min(x, n[i])); upper = upper.map((x, i) => Math.max(x, n[i]));
    const room = [upper.map((x, i) => (x - n[i]) * weight[i]), lower.map((x, i) => (n[i] - x) * weight[i])];
    const step = frozen => {
      const left = beta.map((b, i) => frozen[i] ? 0 : b);
      return data.hold ? exchange(left, volume, room, frozen) : left.map((b, i) => clip(b * volume[i], -room[1][i], room[0][i]));
    };
    const limits = at.limits.map(({reference, allowance}) => {
      const only = w.map((_, q) => q === reference ? 1 : 0);
      return {allowance, growth: slopes(at, only, 1), drawn: slopes(at, only, 0)};
    });
    const change = withinLimits(step, volume, {growth, drawn}, limits, at.calibration);
    const moved = n.map((_, i) => i).filter(i => Math.abs(change[i]) > 1e-9 * Math.max(total, 1)), rows = n.slice();
    const wanted = n.map((x, i) => x + change[i] / weight[i]), pick = xs => moved.map(i => xs[i]);
    if (data.hold && moved.length) {
      const left = total - sum(volume.filter((_, i) => !moved.includes(i)));
      const low = n.map((x, i) => change[i] > 0 ? x : lower[i]), high = n.map((x, i) => change[i] > 0 ? upper[i] : x);
      wholeRows(pick(wanted), pick(weight), left, pick(low), pick(high)).forEach((x, k) => { rows[moved[k]] = x; });
    } else moved.forEach(i => { rows[i] = clip(nearest(wanted[i]), lower[i], upper[i]); });
    const doubt = i => choice.gate && !clear[i] && !Number.isNaN(slope[i]) ? `within its error (p = ${p[i].toFixed(2)})` : "";
    return {rows, slope, se: picked.map(x => x.se), gated, beta, why: picked.map((x, i) =>
      !gated[i] ? x.why + (doubt(i) && ", " + doubt(i)) + (beta[i] * x.slope > 0 ? ", but much less than of the others" : "")
        : Number.isFinite(x.se) ? doubt(i) : "its influence's error is not known")};
  }

  // --- rounds/volume.py ---------------------------------------------------------------------------------------------

  /** Volume of the first `count` drawn rows, repetitions counted; between kept prefixes by interpolation. */
  function amountOf(drawn, count) {
    const rest = count % drawn.rows, repeats = (count - rest) / drawn.rows, at = Math.floor(rest / drawn.stride);
    const over = rest - at * drawn.stride, base = drawn.sums[at];
    const step = over ? (drawn.sums[at + 1] - base) * over / Math.min(drawn.stride, drawn.rows - at * drawn.stride) : 0;
    return repeats * drawn.sums[drawn.sums.length - 1] + base + step;
  }

  const amount = (data, counts) => sum(counts.map((n, i) => amountOf(data.drawn[i], n)));

  const CORRECTION = 0.05;

  /** The movers' counts changed by a few rows within their bounds, so that the rows really drawn amount to the budget. */
  function hold(data, choice, before, after) {
    const budget = choice.budget, [least, most] = rowBounds(data, choice, budget, false);
    const counts = after.slice(), mean = data.drawn.map(d => d.sums[d.sums.length - 1] / d.rows);
    const order = before.map((_, i) => i).filter(i => after[i] !== before[i]).sort((i, j) => mean[j] - mean[i] || i - j);
    for (const i of order) {
      const one = n => amountOf(data.drawn[i], n), grows = after[i] > before[i];
      let [low, high] = grows ? [before[i] + 1, Math.max(most[i], after[i])] : [Math.min(least[i], after[i]), before[i] - 1];
      if (i !== order[order.length - 1]) {
        const reach = Math.max(Math.floor(CORRECTION * after[i]), 1);
        [low, high] = [Math.max(low, after[i] - reach), Math.min(high, after[i] + reach)];
      }
      const wanted = one(after[i]) + budget - amount(data, counts);
      let a = low, b = Math.max(high + 1, low);
      while (a < b) { const mid = Math.floor((a + b) / 2); if (one(mid) < wanted) a = mid + 1; else b = mid; }
      const [x, y] = [Math.max(a - 1, low), Math.min(a, high)].sort((s, t) => s - t);
      counts[i] = Math.abs(one(y) - wanted) < Math.abs(one(x) - wanted) ? y : x;
    }
    return counts;
  }

  /** The mixture that a choice leads to from the measured round `at`. A budget other than the run's scales the measured
      mixture in proportion first, within the pools. */
  function propose(data, at, choice) {
    let n = at.counts;
    if (choice.budget !== data.amount) {
      const w = data.per_row, volume = n.map((x, i) => x * w[i]), total = sum(volume) * choice.budget / data.amount;
      const upper = data.sizes.map(x => choice.max_repeats * x), zero = n.map(() => 0);
      const volumes = fill(volume, zero, upper.map((x, i) => x * w[i]), total);
      n = wholeRows(volumes.map((x, i) => x / w[i]), w, total, zero, upper);
      if (amount(data, n) < 0.99 * choice.budget)
        throw new Error(`With at most ${choice.max_repeats} draws of a row the pools give ${whole(amount(data, n))}, less than this budget.`);
    }
    const step = allocate(data, at, choice, n);
    const counts = data.hold ? hold(data, choice, n, step.rows) : step.rows;
    return {...step, before: n, counts, amount: amount(data, counts), volumes: counts.map((x, i) => amountOf(data.drawn[i], x))};
  }

  /** Prefix sums from draw.json's increments: LEB128 in base64. */
  function unpack(drawn) {
    const sums = [0];
    let number = 0, place = 1;
    for (const char of atob(drawn.increments)) {
      const byte = char.charCodeAt(0);
      number += (byte & 127) * place;
      if (byte > 127) place *= 128;
      else { sums.push(sums[sums.length - 1] + number); number = 0; place = 1; }
    }
    return {...drawn, sums};
  }

  /** The embedded data, ready for `propose`. */
  const load = data => ({...data, drawn: data.drawn.map(unpack)});

  return {load, propose, pValue};
})();
