package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// parseSize reads what cascmd reads: a decimal number with an optional K, M, G, T
// or P (powers of 1024, either case), optionally followed by B or iB.
func parseSize(s string) (int64, error) {
	t := strings.ToUpper(strings.TrimSpace(s))
	t = strings.TrimSuffix(t, "B")
	t = strings.TrimSuffix(t, "I")
	shift := 0
	if n := len(t); n > 0 {
		if i := strings.IndexByte("KMGTP", t[n-1]); i >= 0 {
			shift, t = 10*(i+1), t[:n-1]
		}
	}
	if shift == 0 && strings.HasSuffix(strings.ToUpper(s), "IB") {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	t = strings.TrimSpace(t)
	if whole, err := strconv.ParseInt(t, 10, 64); err == nil {
		if whole < 0 {
			return 0, fmt.Errorf("%q: a size cannot be negative", s)
		}
		if whole > math.MaxInt64>>shift {
			return 0, fmt.Errorf("%q is too large", s)
		}
		return whole << shift, nil
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) || f < 0 || strings.ContainsAny(t, "eExX_pP") {
		return 0, fmt.Errorf("%q is not a size (as 512, 16M, 1.5G, 2T)", s)
	}
	if f *= float64(int64(1) << shift); f >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return int64(f), nil
}

// parseDuration reads Go's durations, and days ("90d", "1d12h").
func parseDuration(s string) (time.Duration, error) {
	rest, days := s, time.Duration(0)
	if i := strings.IndexByte(s, 'd'); i > 0 {
		n, err := strconv.ParseFloat(s[:i], 64)
		if err != nil || n < 0 || n > 100*365 {
			return 0, fmt.Errorf("%q is not a duration (as 30s, 10m, 24h, 90d)", s)
		}
		days, rest = time.Duration(n*24*float64(time.Hour)), s[i+1:]
		if rest == "" {
			return days, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration (as 30s, 10m, 24h, 90d)", s)
	}
	return days + d, nil
}

// parseSpan reads the byte range "A-B" that --range takes: both ends
// inclusive, as in the service's own ranges; B may be missing, and a B that is a multiple of 1 MiB
// means the byte before it (as cascmd reads it), so that 0-64M is the first 64 MiB.
func parseSpan(s string) (first, last int64, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not a range of bytes (as 0-64M or 1048576-)", s)
	}
	if first, err = parseSize(a); err != nil {
		return 0, 0, err
	}
	if strings.TrimSpace(b) == "" {
		return first, -1, nil
	}
	if last, err = parseSize(b); err != nil {
		return 0, 0, err
	}
	last = inclusiveEnd(last)
	if last < first {
		return 0, 0, fmt.Errorf("range %q ends before it begins", s)
	}
	return first, last, nil
}

func inclusiveEnd(n int64) int64 {
	if n > 0 && n%(1<<20) == 0 {
		return n - 1
	}
	return n
}

// parseTime reads the dates the service's filters take, and plain days.
func parseTime(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time (as 2026-01-31 or 2026-01-31T12:00:00Z)", s)
}

// value adapts a parser to pflag.Value.
type value[T any] struct {
	p     *T
	kind  string
	text  string // as given, for help and messages
	parse func(string) (T, error)

	choices []string // for the shell to offer
}

func (v *value[T]) String() string {
	if v == nil || v.p == nil {
		return ""
	}
	return v.text
}
func (v *value[T]) Type() string { return v.kind }
func (v *value[T]) Set(s string) error {
	t, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.p, v.text = t, s
	return nil
}

// boolValue needs the marker that lets pflag take a bare --flag.
type boolValue struct{ *value[bool] }

func (boolValue) IsBoolFlag() bool { return true }

func str(p *string) *value[string] {
	return &value[string]{p: p, kind: "string", parse: func(s string) (string, error) { return s, nil }}
}

// offer names values for the shell to offer; others are good, too.
func offer(v *value[string], choices ...string) pflag.Value {
	v.choices = choices
	return v
}

func pathValue(p *string) pflag.Value {
	return &value[string]{p: p, kind: "path", parse: func(s string) (string, error) { return s, nil }}
}

func size(p *int64) pflag.Value { return &value[int64]{p: p, kind: "size", parse: parseSize} }

func duration(p *time.Duration) pflag.Value {
	return &value[time.Duration]{p: p, kind: "duration", parse: parseDuration}
}

func number(p *int) pflag.Value {
	return &value[int]{p: p, kind: "n", parse: func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("%q is not a number", s)
		}
		return n, nil
	}}
}

func boolean(p *bool) pflag.Value {
	return boolValue{&value[bool]{p: p, kind: "bool", parse: func(s string) (bool, error) {
		switch strings.ToLower(s) {
		case "1", "t", "true", "yes", "on":
			return true, nil
		case "0", "f", "false", "no", "off":
			return false, nil
		}
		return false, fmt.Errorf("%q is neither true nor false", s)
	}}}
}

func oneOf(p *string, choices ...string) pflag.Value {
	return &value[string]{p: p, kind: strings.Join(choices, "|"), choices: choices, parse: func(s string) (string, error) {
		for _, c := range choices {
			if strings.EqualFold(s, c) {
				return c, nil
			}
		}
		return "", fmt.Errorf("%q is not one of %s", s, strings.Join(choices, ", "))
	}}
}

// limit is a size or a share of a file system.
type limit struct {
	bytes   int64
	percent float64
}

// of returns the bytes the limit means on a file system of total bytes.
func (l limit) of(total int64) int64 {
	if l.percent > 0 {
		return int64(float64(total) / 100 * l.percent)
	}
	return l.bytes
}

func share(p *limit) pflag.Value {
	return &value[limit]{p: p, kind: "size|%", parse: func(s string) (limit, error) {
		if pc, ok := strings.CutSuffix(s, "%"); ok {
			f, err := strconv.ParseFloat(pc, 64)
			if err != nil || !(f > 0 && f <= 100) {
				return limit{}, fmt.Errorf("%q is not a percentage", s)
			}
			return limit{percent: f}, nil
		}
		n, err := parseSize(s)
		if err == nil && n == 0 {
			err = errors.New("must be more than nothing")
		}
		return limit{bytes: n}, err
	}}
}

func list(p *[]string) pflag.Value {
	return &value[[]string]{p: p, kind: "list", parse: func(s string) ([]string, error) {
		var out []string
		for _, e := range strings.Split(s, ",") {
			if e = strings.TrimSpace(e); e != "" {
				out = append(out, e)
			}
		}
		return out, nil
	}}
}
