package httpapi

import (
	"bytes"
	"errors"
	"iter"
	"mime"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

const (
	maxBody   = 1 << 20 // bytes of a request
	maxDepth  = 64      // nesting of JSON: enough for every document of the API, and safe for its readers
	maxFaults = 20      // in one response
)

// JSON is a request body: an object with B's members and no others, as strict
// as RFC 7493. huma only reads it: its decoder would accept duplicate members
// and quote values in its errors.
type JSON[B any] struct {
	RawBody []byte `contentType:"application/json"` // valid until the handler returns
	value   B
}

// body is a JSON[B] to code that does not know B.
type body interface {
	raw() []byte
	decode() error
	bodyType() reflect.Type
}

func (j *JSON[B]) raw() []byte            { return j.RawBody }
func (j *JSON[B]) decode() error          { return decode(j.RawBody, &j.value) }
func (j *JSON[B]) bodyType() reflect.Type { return reflect.TypeFor[B]() }

// mediaType refuses a body whose Content-Type is neither JSON nor a merge patch
// (RFC 7396).
func mediaType(contentType string) error {
	if contentType == "" || contentType == "application/json" {
		return nil
	}
	t, params, err := mime.ParseMediaType(contentType)
	charset := params["charset"]
	if err != nil || t != "application/json" && t != "application/merge-patch+json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return newProblem(codeUnsupportedMediaType, "The body must be application/json in UTF-8.").with("Accept", "application/json")
	}
	return nil
}

// decode decodes an object into the zero *into, or reports everything that is
// wrong with its shape. Rules beyond the shape belong to the domain.
func decode[B any](data []byte, into *B) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return newProblem(codeMalformedJSON, "The body is missing.")
	}
	if deeperThan(data, maxDepth) {
		return newProblem(codeMalformedJSON, "The body is nested deeper than %d levels.", maxDepth)
	}
	if hugeNumber(data) {
		return newProblem(codeMalformedJSON, "The body contains a number outside the range of 64-bit floating point.")
	}
	var faults []domain.Fault
	for {
		var value B
		err := json.Unmarshal(data, &value, json.RejectUnknownMembers(true))
		if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
			return malformed(syntax)
		}
		wrong, ok := errors.AsType[*json.SemanticError](err)
		switch {
		case err != nil && !ok:
			return newProblem(codeMalformedJSON, "The body is not JSON.")
		case !ok && len(faults) == 0:
			if bytes.TrimSpace(data)[0] != '{' {
				return invalid([]domain.Fault{{Pointer: "", Detail: "must be an object"}})
			}
			*into = value
			return nil
		case !ok:
			return invalid(faults)
		}
		unknown := errors.Is(err, json.ErrUnknownName)
		faults = append(faults, domain.Fault{Pointer: string(wrong.JSONPointer), Detail: shapeFault(wrong, unknown)})
		// The decoder stops at the first fault. To find the next one, remove an
		// unknown member or set a value of the wrong type to null, and retry.
		rest, err := without(data, wrong.JSONPointer, unknown)
		if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
			return malformed(syntax) // after the first fault
		}
		if err != nil || len(faults) == maxFaults {
			return invalid(faults)
		}
		data = rest
	}
}

func invalid(faults []domain.Fault) error {
	return &domain.Error{Code: domain.CodeInvalidRequest, Detail: "The request breaks the rules listed.", Faults: faults}
}

// under adds prefix to the JSON pointers in err. The domain's pointers are
// relative to a command's value, which is a member of the request body.
func under(prefix string, err error) error {
	if refusal, ok := errors.AsType[*domain.Error](err); ok {
		for i := range refusal.Faults {
			refusal.Faults[i].Pointer = prefix + refusal.Faults[i].Pointer
		}
	}
	return err
}

func malformed(e *jsontext.SyntacticError) error {
	what := "The JSON is malformed"
	if errors.Is(e, jsontext.ErrDuplicateName) {
		what = "A member is repeated"
	}
	p := newProblem(codeMalformedJSON, "%s at byte %d.", what, e.ByteOffset)
	if pointer := string(e.JSONPointer); pointer != "" {
		p.Errors = []fault{{Pointer: &pointer, Detail: "here or directly after it"}}
	}
	return p
}

// shapeFault describes the expected value in JSON's terms.
func shapeFault(e *json.SemanticError, unknown bool) string {
	if unknown {
		return "unknown member"
	}
	if e.GoType == nil {
		return "has the wrong type"
	}
	if e.GoType == reflect.TypeFor[time.Time]() {
		return "must be a time in RFC 3339 format"
	}
	switch t := e.GoType; t.Kind() {
	case reflect.String:
		return "must be a string"
	case reflect.Bool:
		return "must be true or false"
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		return "must be an integer"
	case reflect.Slice, reflect.Array:
		return "must be an array"
	}
	return "must be an object"
}

// without returns data with the value at the pointer removed or set to null.
func without(data []byte, at jsontext.Pointer, remove bool) ([]byte, error) {
	var document any
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, err
	}
	last := at.LastToken()
	parent := document
	for token := range at.Parent().Tokens() {
		switch p := parent.(type) {
		case map[string]any:
			parent = p[token]
		case []any:
			i, err := index(token, len(p))
			if err != nil {
				return nil, err
			}
			parent = p[i]
		}
	}
	switch p := parent.(type) {
	case map[string]any:
		if at == "" {
			return nil, errNoPlace
		}
		if p[last] = nil; remove {
			delete(p, last)
		}
	case []any:
		i, err := index(last, len(p))
		if err != nil {
			return nil, err
		}
		p[i] = nil
	default:
		return nil, errNoPlace
	}
	return json.Marshal(document)
}

var errNoPlace = errors.New("httpapi: no such place in the document")

func index(token string, length int) (int, error) {
	i := 0
	for _, digit := range token {
		if digit < '0' || digit > '9' || i > length {
			return 0, errNoPlace
		}
		i = 10*i + int(digit-'0')
	}
	if token == "" || i >= length {
		return 0, errNoPlace
	}
	return i, nil
}

// hugeNumber reports whether JSON contains a number that RFC 7493 excludes and
// that most readers would turn into infinity.
func hugeNumber(data []byte) bool {
	end := 0 // of the current number
	for i, c := range unquoted(data) {
		if i < end || c < '0' || c > '9' {
			continue
		}
		for end = i; end < len(data) && strings.IndexByte("0123456789.eE+-", data[end]) >= 0; end++ {
		}
		if number := data[i:end]; len(number) > 4 { // shorter ones are in range
			if _, err := strconv.ParseFloat(string(number), 64); errors.Is(err, strconv.ErrRange) {
				return true
			}
		}
	}
	return false
}

// deeperThan reports whether JSON is nested deeper than most levels. It runs
// before any recursive decoder.
func deeperThan(data []byte, most int) bool {
	depth := 0
	for _, c := range unquoted(data) {
		switch c {
		case '{', '[':
			if depth++; depth > most {
				return true
			}
		case '}', ']':
			depth--
		}
	}
	return false
}

// unquoted yields the bytes of JSON outside strings.
func unquoted(data []byte) iter.Seq2[int, byte] {
	return func(yield func(int, byte) bool) {
		quoted := false
		for i := 0; i < len(data); i++ {
			switch c := data[i]; {
			case quoted && c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case !quoted && !yield(i, c):
				return
			}
		}
	}
}
