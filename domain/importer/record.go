package importer

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// A record is one row of the source as a tree of map[string]any, []any, string,
// bool, nil, and jsontext.Value for a number, which keeps all its digits.
type record = any

// decodeRecord reads the next JSON value.
func decodeRecord(d *jsontext.Decoder) (record, error) {
	switch d.PeekKind() {
	case '{':
		if _, err := d.ReadToken(); err != nil {
			return nil, err
		}
		object := map[string]any{}
		for d.PeekKind() != '}' {
			name, err := d.ReadToken()
			if err != nil {
				return nil, err
			}
			key := name.String() // the next read invalidates the token
			if object[key], err = decodeRecord(d); err != nil {
				return nil, err
			}
		}
		_, err := d.ReadToken()
		return object, err
	case '[':
		if _, err := d.ReadToken(); err != nil {
			return nil, err
		}
		array := []any{}
		for d.PeekKind() != ']' {
			element, err := decodeRecord(d)
			if err != nil {
				return nil, err
			}
			array = append(array, element)
		}
		_, err := d.ReadToken()
		return array, err
	}
	v, err := d.ReadValue()
	if err != nil {
		return nil, err
	}
	switch v.Kind() {
	case '"':
		text, err := jsontext.AppendUnquote(nil, v)
		return string(text), err
	case 't', 'f':
		return v.Kind() == 't', nil
	case 'n':
		return nil, nil
	}
	return v.Clone(), nil
}

// path is the tokens of an RFC 6901 pointer.
type path []string

// parsePath parses a pointer with at least one token.
func parsePath(text string) (path, error) {
	p := jsontext.Pointer(text)
	if text == "" || !p.IsValid() {
		return nil, errors.New("must be a JSON pointer (RFC 6901) like /address/city")
	}
	return slices.Collect(p.Tokens()), nil
}

func (p path) String() string {
	var pointer jsontext.Pointer
	for _, token := range p {
		pointer = pointer.AppendToken(token)
	}
	return string(pointer)
}

// lookup returns the value at p in r.
func (p path) lookup(r record) (v any, found bool) {
	for _, token := range p {
		switch container := r.(type) {
		case map[string]any:
			if r, found = container[token]; !found {
				return nil, false
			}
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(container) {
				return nil, false
			}
			r = container[i]
		default:
			return nil, false
		}
	}
	return r, true
}

// textOf returns a scalar as text.
func textOf(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case jsontext.Value:
		return string(v), nil
	case bool:
		return strconv.FormatBool(v), nil
	}
	return "", errors.New("must be text, a number, true or false, not a list or an object")
}

// exact replaces every number in v that canonical JSON (RFC 8785: IEEE 754
// doubles) would round with its text. It reports whether it replaced any.
func exact(v any) (_ any, replaced bool) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if kept, r := exact(member); r {
				v[name], replaced = kept, true
			}
		}
	case []any:
		for i, element := range v {
			if kept, r := exact(element); r {
				v[i], replaced = kept, true
			}
		}
	case jsontext.Value:
		canonical := v.Clone()
		if canonical.Canonicalize() != nil || decimal(string(canonical)) != decimal(string(v)) {
			return string(v), true
		}
	}
	return v, replaced
}

// decimal converts the text of a JSON number to a form that is the same for equal
// numbers. It does no arithmetic on the number, so 1e999999999 costs no more
// than 1.
func decimal(number string) string {
	number = strings.ToLower(number)
	mantissa, exponent, _ := strings.Cut(number, "e")
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	scale, _ := strconv.Atoi(exponent) // 0 if absent; the closest int if out of range
	scale -= len(fraction)
	trimmed := strings.TrimRight(digits, "0")
	scale += len(digits) - len(trimmed)
	if trimmed == "" {
		return "0"
	}
	return fmt.Sprintf("%t %s %d", negative, trimmed, scale)
}

// members is a set of a source's members: a tree in which a whole member includes
// everything below it.
type members struct {
	whole bool // the set has this member with everything below it
	below map[string]*members
}

// each, as a token of a path, matches every element of a list.
const each = "*"

// add adds the member at p.
func (m *members) add(p path) {
	for _, token := range p {
		if m.below == nil {
			m.below = map[string]*members{}
		}
		if m.below[token] == nil {
			m.below[token] = &members{}
		}
		m = m.below[token]
	}
	m.whole = true
}

// unmapped calls report for every member of v that is not empty and not in m, at
// the highest level possible. All elements of a list have the same path. report
// must not retain the path.
func (m *members) unmapped(v any, at path, report func(path)) {
	if m == nil || !m.whole && m.below == nil {
		if !empty(v) {
			report(at)
		}
		return
	}
	if m.whole {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			m.below[name].unmapped(member, append(at, name), report)
		}
	case []any:
		for i, element := range v {
			below := m.below[strconv.Itoa(i)]
			if below == nil {
				below = m.below[each]
			}
			below.unmapped(element, append(at, each), report)
		}
	default:
		// The mapping expects an object or a list here, so it does not use
		// the value.
		if !empty(v) {
			report(at)
		}
	}
}

// empty reports whether v is null, "", [] or {}.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
