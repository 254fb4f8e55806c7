package cas

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The documents, the SDKs and live captures disagree about types (cas-api.md
// §12): numbers may be strings, anything may be null. These decode all of it.

// flexString is "" for null, and the literal text of a number or boolean.
type flexString string

func (s *flexString) UnmarshalJSON(b []byte) error {
	switch {
	case bytes.Equal(b, []byte("null")):
		*s = ""
		return nil
	case b[0] == '"':
		if plain(b) {
			*s = flexString(b[1 : len(b)-1])
			return nil
		}
		return json.Unmarshal(b, (*string)(s))
	case b[0] == '{', b[0] == '[':
		return fmt.Errorf("a string is expected, not %.20s", b)
	}
	*s = flexString(b)
	return nil
}

// plain reports whether a JSON string stands for the bytes it consists of.
func plain(b []byte) bool {
	for _, c := range b {
		if c == '\\' || c >= 0x80 {
			return false
		}
	}
	return true
}

// flexInt knows null and "" from 0.
type flexInt struct {
	n   int64
	set bool
}

func (i *flexInt) UnmarshalJSON(b []byte) error {
	*i = flexInt{}
	var s flexString
	if err := s.UnmarshalJSON(b); err != nil {
		return err
	}
	if s == "" {
		return nil
	}
	n, err := strconv.ParseInt(string(s), 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(string(s), 64)
		if ferr != nil || f != float64(int64(f)) || f < -1<<53 || f > 1<<53 {
			return fmt.Errorf("a whole number is expected, not %.20s", b)
		}
		n = int64(f)
	}
	*i = flexInt{n, true}
	return nil
}

// or returns the number, or d for null.
func (i flexInt) or(d int64) int64 {
	if i.set {
		return i.n
	}
	return d
}

// flexBool also takes "True" and "false".
type flexBool bool

func (v *flexBool) UnmarshalJSON(b []byte) error {
	var s flexString
	if err := s.UnmarshalJSON(b); err != nil {
		return err
	}
	if s == "" {
		*v = false
		return nil
	}
	t, err := strconv.ParseBool(strings.ToLower(string(s)))
	if err != nil {
		return fmt.Errorf("true or false is expected, not %.20s", b)
	}
	*v = flexBool(t)
	return nil
}

// flexTime is zero for null and "".
type flexTime struct{ time.Time }

func (t *flexTime) UnmarshalJSON(b []byte) (err error) {
	var s flexString
	if err := s.UnmarshalJSON(b); err != nil {
		return err
	}
	t.Time, err = parseTime(string(s))
	return err
}

// timeFormat is what requests carry: UTC, whole seconds.
const timeFormat = "2006-01-02T15:04:05Z"

func parseTime(s string) (time.Time, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return time.Time{}, nil
	}
	for _, f := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05Z0700", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.Parse(f, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%.40q is no time", s)
}

// flexHash is zero for null and "".
type flexHash struct{ Hash }

func (h *flexHash) UnmarshalJSON(b []byte) error {
	var s flexString
	if err := s.UnmarshalJSON(b); err != nil {
		return err
	}
	v, err := ParseHash(strings.TrimSpace(string(s)))
	h.Hash = v
	return err
}

func pageQuery(p Page) []pair {
	q := []pair{{"marker", p.Marker}}
	if p.Limit > 0 {
		q = append(q, pair{"limit", strconv.Itoa(p.Limit)})
	}
	return q
}
