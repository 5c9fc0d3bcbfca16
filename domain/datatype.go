package domain

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// DataType is the type of the values of a custom field.
type DataType string

// The data types.
const (
	TypeText        DataType = "TEXT"
	TypeTextarea    DataType = "TEXTAREA"
	TypeNumber      DataType = "NUMBER"
	TypeBoolean     DataType = "BOOLEAN"
	TypeCheckbox    DataType = "CHECKBOX"
	TypeDate        DataType = "DATE"
	TypeURL         DataType = "URL"
	TypeEmail       DataType = "EMAIL"
	TypeMobile      DataType = "MOBILE"
	TypeSelect      DataType = "SELECT"
	TypeRadio       DataType = "RADIO"
	TypeMultiselect DataType = "MULTISELECT"
	TypeArray       DataType = "ARRAY"
	TypeJSON        DataType = "JSON"
	TypeUsername    DataType = "USERNAME"
)

// DataTypeRule describes a data type: its values, and which further rules a field
// of the type can have.
type DataTypeRule struct {
	Type    DataType
	Meaning string // a phrase

	Bounded   bool // takes min and max
	Sized     bool // takes minLength and maxLength, in characters or elements
	Patterned bool // takes regex
	Chosen    bool // requires options
	Unique    bool // can be unique; a USERNAME always is
	Linked    bool // can be linked to a consent

	// check returns the value as it is stored, or the rule that it breaks.
	check func(f Field, value jsontext.Value) (jsontext.Value, string)
}

// DataTypes lists every data type.
var DataTypes = []DataTypeRule{
	{Type: TypeText, Meaning: "one line of text, at most 255 characters unless maxLength is set",
		Sized: true, Patterned: true, Unique: true, check: checkText},
	{Type: TypeTextarea, Meaning: "text of any number of lines", Sized: true, Patterned: true, check: checkText},
	{Type: TypeNumber, Meaning: "a number (IEEE 754 binary64)", Bounded: true, Unique: true, check: checkNumber},
	{Type: TypeBoolean, Meaning: "true or false", Linked: true, check: checkBoolean},
	{Type: TypeCheckbox, Meaning: "true or false", Linked: true, check: checkBoolean},
	{Type: TypeDate, Meaning: "a date, YYYY-MM-DD", Unique: true, check: checkDate},
	{Type: TypeURL, Meaning: "an http or https URL of at most 2048 bytes", Sized: true, Patterned: true, Unique: true, check: checkURL},
	{Type: TypeEmail, Meaning: "an e-mail address, normalized like an identifier", Sized: true, Patterned: true, Unique: true, check: checkIdentifier(KindEmail)},
	{Type: TypeMobile, Meaning: "a mobile number, normalized to E.164", Unique: true, check: checkIdentifier(KindMobileNumber)},
	{Type: TypeSelect, Meaning: "one of the options", Chosen: true, check: checkChoice},
	{Type: TypeRadio, Meaning: "one of the options", Chosen: true, check: checkChoice},
	{Type: TypeMultiselect, Meaning: "an array of options, each at most once", Sized: true, Chosen: true, check: checkChoices},
	{Type: TypeArray, Meaning: "an array of any values", Sized: true, check: checkArray},
	{Type: TypeJSON, Meaning: "any JSON value", check: func(_ Field, v jsontext.Value) (jsontext.Value, string) { return v, "" }},
	{Type: TypeUsername, Meaning: "a username to sign in with, at most 255 bytes, trimmed and unique among all usernames",
		Sized: true, Patterned: true, Unique: true, check: checkUsername},
}

// Ordered reports whether values of the type have an order: numbers and dates.
func (t DataType) Ordered() bool { return t == TypeNumber || t == TypeDate }

// rule returns the rule of a data type. ok is false for an unknown type.
func (t DataType) rule() (DataTypeRule, bool) {
	i := slices.IndexFunc(DataTypes, func(r DataTypeRule) bool { return r.Type == t })
	if i < 0 {
		return DataTypeRule{}, false
	}
	return DataTypes[i], true
}

// text decodes a JSON string of valid UTF-8 without NUL.
func text(v jsontext.Value) (string, bool) {
	var s string
	if v.Kind() != '"' || json.Unmarshal(v, &s) != nil || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return "", false
	}
	return s, true
}

func quoted(s string) jsontext.Value {
	v, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		panic("domain: checked text does not quote: " + err.Error())
	}
	return v
}

// defaultLine is the maximum length of a TEXT whose field has no maxLength.
const defaultLine = 255

func checkText(f Field, v jsontext.Value) (jsontext.Value, string) {
	s, ok := text(v)
	most := f.MaxLength
	switch {
	case !ok:
		return nil, "must be a string in UTF-8 without NUL"
	case f.DataType == TypeText && strings.ContainsFunc(s, unicode.IsControl):
		return nil, "must be one line without control characters"
	case f.DataType == TypeText && most == 0:
		most = defaultLine
	}
	return v, f.checkString(s, most)
}

// checkString returns the length or pattern rule that s breaks, "" if none.
func (f Field) checkString(s string, most int) string {
	n := utf8.RuneCountInString(s)
	switch {
	case n < f.MinLength:
		return "must have at least " + strconv.Itoa(f.MinLength) + " characters"
	case most > 0 && n > most:
		return "must have at most " + strconv.Itoa(most) + " characters"
	case f.pattern != nil && !f.pattern.MatchString(s):
		return "must match the field's regex"
	case f.Required && s == "":
		return "required: must not be empty"
	}
	return ""
}

func checkNumber(f Field, v jsontext.Value) (jsontext.Value, string) {
	n, err := strconv.ParseFloat(string(v), 64)
	switch {
	case v.Kind() != '0' || err != nil || math.IsInf(n, 0):
		return nil, "must be a number"
	case f.Min != nil && n < *f.Min:
		return nil, "must be at least " + strconv.FormatFloat(*f.Min, 'g', -1, 64)
	case f.Max != nil && n > *f.Max:
		return nil, "must be at most " + strconv.FormatFloat(*f.Max, 'g', -1, 64)
	}
	return v, ""
}

func checkBoolean(_ Field, v jsontext.Value) (jsontext.Value, string) {
	if k := v.Kind(); k != 't' && k != 'f' {
		return nil, "must be true or false"
	}
	return v, ""
}

func checkDate(_ Field, v jsontext.Value) (jsontext.Value, string) {
	s, _ := text(v)
	if _, err := time.Parse(time.DateOnly, s); err != nil {
		return nil, "must be a date, YYYY-MM-DD"
	}
	return v, ""
}

func checkURL(f Field, v jsontext.Value) (jsontext.Value, string) {
	s, _ := text(v)
	var wrong faults
	if wrong.url("", s); s == "" || len(wrong) > 0 {
		return nil, "must be an http or https URL of at most 2048 bytes"
	}
	return v, f.checkString(s, f.MaxLength)
}

func checkIdentifier(kind Kind) func(Field, jsontext.Value) (jsontext.Value, string) {
	return func(f Field, v jsontext.Value) (jsontext.Value, string) {
		s, _ := text(v)
		normal, err := Normalize(kind, s)
		if err != nil {
			return nil, err.Error()
		}
		return quoted(normal), f.checkString(normal, f.MaxLength)
	}
}

func checkUsername(f Field, v jsontext.Value) (jsontext.Value, string) {
	s, _ := text(v)
	s = strings.TrimSpace(s)
	if s == "" || len(s) > 255 || strings.ContainsFunc(s, unicode.IsControl) {
		return nil, "must be one line of 1 to 255 bytes"
	}
	return quoted(s), f.checkString(s, f.MaxLength)
}

func checkChoice(f Field, v jsontext.Value) (jsontext.Value, string) {
	if s, ok := text(v); !ok || !slices.Contains(f.Options, s) {
		return nil, "must be one of the field's options"
	}
	return v, ""
}

func checkChoices(f Field, v jsontext.Value) (jsontext.Value, string) {
	var chosen []string
	if v.Kind() != '[' || json.Unmarshal(v, &chosen) != nil {
		return nil, "must be an array of the field's options"
	}
	seen := map[string]bool{}
	for _, s := range chosen {
		if !slices.Contains(f.Options, s) || seen[s] {
			return nil, "must be an array of the field's options, each at most once"
		}
		seen[s] = true
	}
	return v, f.checkLength(len(chosen))
}

func checkArray(f Field, v jsontext.Value) (jsontext.Value, string) {
	var elements []jsontext.Value
	if v.Kind() != '[' || json.Unmarshal(v, &elements) != nil {
		return nil, "must be an array"
	}
	return v, f.checkLength(len(elements))
}

// checkLength returns the length rule that an array of n elements breaks.
func (f Field) checkLength(n int) string {
	switch {
	case n < f.MinLength:
		return "must have at least " + strconv.Itoa(f.MinLength) + " elements"
	case f.MaxLength > 0 && n > f.MaxLength:
		return "must have at most " + strconv.Itoa(f.MaxLength) + " elements"
	case f.Required && n == 0:
		return "required: must not be empty"
	}
	return ""
}
