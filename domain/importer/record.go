package importer

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// A record is one row of the source as a tree: map[string]any, []any, string,
// bool, nil, and for a number its text as it stands there (jsontext.Value), so
// that no digit is lost on the way.
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
			key := name.String() // the token is gone after the next read
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

// path is an RFC 6901 pointer, cut into its tokens.
type path []string

// parsePath takes a pointer of at least one token.
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

// of returns the value p leads to in r.
func (p path) of(r record) (v any, found bool) {
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

// textOf is a scalar as text.
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

// exact returns v with every number that JSON in its canonical form (RFC 8785:
// IEEE 754 doubles) would round replaced by its text, and says whether there
// was one.
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

// decimal brings the text of a JSON number into a form that is equal for
// equal numbers. It does no arithmetic on the number itself, so 1e999999999
// costs no more than 1.
func decimal(number string) string {
	number = strings.ToLower(number)
	mantissa, exponent, _ := strings.Cut(number, "e")
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	scale, _ := strconv.Atoi(exponent) // absent is 0; out of range stays at the end of the range
	scale -= len(fraction)
	trimmed := strings.TrimRight(digits, "0")
	scale += len(digits) - len(trimmed)
	if trimmed == "" {
		return "0"
	}
	return fmt.Sprintf("%t %s %d", negative, trimmed, scale)
}

// members is the set of a source's members that a mapping deals with: a tree
// whose leaves stand for everything below them.
type members struct {
	whole bool // this member is dealt with, whatever it holds
	below map[string]*members
}

// each stands in a path for every element of a list.
const each = "*"

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

// missed calls miss with the path of every member of v, at the highest level
// possible, that m does not deal with and that holds something. Elements of
// lists are not told apart. The path is miss's only during the call.
func (m *members) missed(v any, at path, miss func(path)) {
	if m == nil || !m.whole && m.below == nil {
		if !empty(v) {
			miss(at)
		}
		return
	}
	if m.whole {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			m.below[name].missed(member, append(at, name), miss)
		}
	case []any:
		for i, element := range v {
			below := m.below[strconv.Itoa(i)]
			if below == nil {
				below = m.below[each]
			}
			below.missed(element, append(at, each), miss)
		}
	default:
		// The mapping reaches below a member that is no container here, so
		// nothing takes its value.
		if !empty(v) {
			miss(at)
		}
	}
}

// empty reports whether v says nothing: null, "", [] and {}.
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
