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

// DataType says what the values of a custom field are.
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

// DataTypeRule is what a data type asks of values, and which further rules a
// field of that type may have.
type DataTypeRule struct {
	Type    DataType
	Meaning string // a phrase

	Bounded   bool // takes min and max
	Sized     bool // takes minLength and maxLength: of characters, or of elements
	Patterned bool // takes regex
	Chosen    bool // takes options, and needs some
	Unique    bool // may be unique; a USERNAME always is
	Linked    bool // may be linked to a consent

	// check returns the value in the form in which it is stored, or the rule
	// it breaks.
	check func(f Field, value jsontext.Value) (jsontext.Value, string)
}

// DataTypes lists every data type.
var DataTypes = []DataTypeRule{
	{Type: TypeText, Meaning: "text on one line, of at most 255 characters unless maxLength says otherwise",
		Sized: true, Patterned: true, Unique: true, check: checkText},
	{Type: TypeTextarea, Meaning: "text on any number of lines", Sized: true, Patterned: true, check: checkText},
	{Type: TypeNumber, Meaning: "a number, as precise as IEEE 754 binary64", Bounded: true, Unique: true, check: checkNumber},
	{Type: TypeBoolean, Meaning: "true or false", Linked: true, check: checkBoolean},
	{Type: TypeCheckbox, Meaning: "true or false", Linked: true, check: checkBoolean},
	{Type: TypeDate, Meaning: "a date, YYYY-MM-DD", Unique: true, check: checkDate},
	{Type: TypeURL, Meaning: "an http or https URL of at most 2048 bytes", Sized: true, Patterned: true, Unique: true, check: checkURL},
	{Type: TypeEmail, Meaning: "an e-mail address, normalised like an identifier", Sized: true, Patterned: true, Unique: true, check: checkIdentifier(KindEmail)},
	{Type: TypeMobile, Meaning: "a mobile number, normalised to E.164", Unique: true, check: checkIdentifier(KindMobileNumber)},
	{Type: TypeSelect, Meaning: "one of the options", Chosen: true, check: checkChoice},
	{Type: TypeRadio, Meaning: "one of the options", Chosen: true, check: checkChoice},
	{Type: TypeMultiselect, Meaning: "an array of options, each at most once", Sized: true, Chosen: true, check: checkChoices},
	{Type: TypeArray, Meaning: "an array of any values", Sized: true, check: checkArray},
	{Type: TypeJSON, Meaning: "any JSON value", check: func(_ Field, v jsontext.Value) (jsontext.Value, string) { return v, "" }},
	{Type: TypeUsername, Meaning: "a name to sign in with, of at most 255 bytes: trimmed, and no other account has it as a username",
		Sized: true, Patterned: true, Unique: true, check: checkUsername},
}

// Ordered reports whether values of the type lie between others: numbers and
// dates.
func (t DataType) Ordered() bool { return t == TypeNumber || t == TypeDate }

// rule is the table's line of a type, which may have none.
func (t DataType) rule() (DataTypeRule, bool) {
	i := slices.IndexFunc(DataTypes, func(r DataTypeRule) bool { return r.Type == t })
	if i < 0 {
		return DataTypeRule{}, false
	}
	return DataTypes[i], true
}

// text reads a JSON string that is text in UTF-8 without NUL.
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

// defaultLine is how long a TEXT may be whose field does not say so.
const defaultLine = 255

func checkText(f Field, v jsontext.Value) (jsontext.Value, string) {
	s, ok := text(v)
	most := f.MaxLength
	switch {
	case !ok:
		return nil, "must be a string in UTF-8 without NUL"
	case f.DataType == TypeText && strings.ContainsFunc(s, unicode.IsControl):
		return nil, "must be on one line, without control characters"
	case f.DataType == TypeText && most == 0:
		most = defaultLine
	}
	return v, f.checkString(s, most)
}

// checkString holds s to the field's lengths and pattern.
func (f Field) checkString(s string, most int) string {
	n := utf8.RuneCountInString(s)
	switch {
	case n < f.MinLength:
		return "at least " + strconv.Itoa(f.MinLength) + " characters"
	case most > 0 && n > most:
		return "at most " + strconv.Itoa(most) + " characters"
	case f.pattern != nil && !f.pattern.MatchString(s):
		return "does not match the field's regex"
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
		return nil, "at least " + strconv.FormatFloat(*f.Min, 'g', -1, 64)
	case f.Max != nil && n > *f.Max:
		return nil, "at most " + strconv.FormatFloat(*f.Max, 'g', -1, 64)
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
		return nil, "must be 1 to 255 bytes of text on one line"
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

// checkLength holds an array of n elements to the field's lengths.
func (f Field) checkLength(n int) string {
	switch {
	case n < f.MinLength:
		return "at least " + strconv.Itoa(f.MinLength) + " elements"
	case f.MaxLength > 0 && n > f.MaxLength:
		return "at most " + strconv.Itoa(f.MaxLength) + " elements"
	case f.Required && n == 0:
		return "required: must not be empty"
	}
	return ""
}
