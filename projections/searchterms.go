package projections

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"accountledger/domain"
)

// The prefixes of terms. The rest of a term is a word, an id or a value; it
// contains no line feed.
const (
	termName     = "n=" // a word of a name
	termEmail    = "e=" // a whole e-mail address
	termPart     = "p=" // a word of an e-mail address that is not also in a name
	termStatus   = "s="
	termGroup    = "g="
	termRole     = "r=" // followed by the role, a slash, and the group or one above it
	termProvider = "i="
	termField    = "f" // followed by the key, '=' and a value
)

const (
	maxTerm     = 100 // bytes after the prefix; longer words are truncated, longer values replaced by a digest
	maxElements = 100 // of an array that are indexed
)

// indexAccount computes an account's row in the index. fields are the custom
// fields to index.
func indexAccount(row AccountRow, fields map[string]domain.DataType) (searchRow, error) {
	a, err := row.Account()
	if err != nil {
		return searchRow{}, err
	}
	x := searchRow{id: searchID(a.Sub, a.CreatedTime), sub: a.Sub, created: a.CreatedTime.UnixMicro(), updated: a.UpdatedTime.UnixMicro()}
	switch {
	case a.Erased():
		return x, nil
	case a.Status == domain.StatusCombined:
		// Its data belongs to the surviving account now. Only a query for this
		// status finds it.
		x.terms = []string{termStatus + string(a.Status)}
		return x, nil
	}
	x.listed = true
	if !a.LastLoggedInTime.IsZero() {
		x.login = a.LastLoggedInTime.UnixMicro()
	}
	terms := map[string]bool{termStatus + string(a.Status): true}
	for _, i := range a.Identities {
		terms[termProvider+i.Provider] = true
		for _, name := range []string{i.GivenName, i.FamilyName, i.MiddleName, i.Nickname} {
			for _, word := range words(name) {
				terms[termName+word] = true
			}
		}
		if x.name == "" {
			x.name = truncateTerm(foldText(strings.TrimSpace(i.FamilyName + " " + i.GivenName)))
		}
	}
	for _, i := range a.Identities {
		emailTerms(terms, i.Email)
	}
	for _, m := range a.Groups {
		for group := range strings.SplitSeq(strings.TrimPrefix(m.Path, "/"), "/") {
			terms[termGroup+group] = true
			for _, role := range m.Roles {
				terms[termRole+role+"/"+group] = true
			}
		}
	}
	for key, t := range fields {
		if value, has := a.CustomFields[key]; has {
			for _, v := range fieldTerms(t, value) {
				terms[termField+key+"="+v] = true
			}
		}
	}
	for term := range terms {
		x.terms = append(x.terms, term)
	}
	slices.Sort(x.terms)
	return x, nil
}

// emailTerms adds the terms of an e-mail address to terms, which has those of
// the names.
func emailTerms(terms map[string]bool, email string) {
	if email == "" {
		return
	}
	terms[termEmail+truncateTerm(foldText(email))] = true
	for _, word := range words(email) {
		if !terms[termName+word] {
			terms[termPart+word] = true
		}
	}
}

// foldText removes differences of case, accents and Unicode form, and replaces
// line breaks and other white space with spaces.
func foldText(s string) string {
	s = norm.NFKD.String(cases.Fold().String(norm.NFKD.String(s)))
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.Mn, r):
			return -1
		case unicode.IsControl(r) || unicode.IsSpace(r):
			return ' '
		}
		return r
	}, s)
}

// words returns the words of s, folded: the sequences of letters and digits.
func words(s string) []string {
	all := strings.FieldsFunc(foldText(s), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.Is(unicode.M, r) })
	for i := range all {
		all[i] = truncateTerm(all[i])
	}
	return all
}

// searchWords returns the words of a search text. An e-mail address, or the
// beginning of one that includes the @, is one word.
func searchWords(s string) []string {
	var all []string
	for token := range strings.FieldsSeq(foldText(s)) {
		if at := strings.IndexByte(token, '@'); at > 0 {
			all = append(all, truncateTerm(token))
		} else {
			all = append(all, words(token)...)
		}
	}
	return all
}

// truncateTerm truncates a word to maxTerm, both in the index and in queries.
func truncateTerm(s string) string {
	if len(s) <= maxTerm {
		return s
	}
	end := maxTerm
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// fieldTerms returns the terms of a custom field's value, without the prefix:
// one for each element of an array, otherwise one.
func fieldTerms(t domain.DataType, value jsontext.Value) []string {
	switch t {
	case domain.TypeArray, domain.TypeMultiselect:
		var elements []jsontext.Value
		if json.Unmarshal(value, &elements) != nil {
			return nil
		}
		var all []string
		for _, element := range elements[:min(len(elements), maxElements)] {
			if term, err := fieldTerm(t, element); err == nil {
				all = append(all, term)
			}
		}
		return all
	}
	term, err := fieldTerm(t, value)
	if err != nil {
		return nil // the value is older than the field's definition
	}
	return []string{term}
}

// Errors of fieldTerm; a FieldError has their text as its Rule.
var (
	errNotNumber = errors.New("must be a number")
	errNotDate   = errors.New("must be a date, YYYY-MM-DD")
	errNotText   = errors.New("must be a string")
)

// fieldTerm returns the term of one value. The terms of numbers and dates sort
// in the order of the values.
func fieldTerm(t domain.DataType, value jsontext.Value) (string, error) {
	var s string
	isText := value.Kind() == '"' && json.Unmarshal(value, &s) == nil
	switch t {
	case domain.TypeNumber:
		n, err := strconv.ParseFloat(string(value), 64)
		if value.Kind() != '0' || err != nil {
			return "", errNotNumber
		}
		return sortable(n), nil
	case domain.TypeDate:
		if _, err := time.Parse(time.DateOnly, s); err != nil {
			return "", errNotDate
		}
		return s, nil
	case domain.TypeEmail, domain.TypeMobile:
		kind := domain.KindEmail
		if t == domain.TypeMobile {
			kind = domain.KindMobileNumber
		}
		normal, err := domain.Normalize(kind, s)
		if !isText || err != nil {
			return "", errNotText
		}
		return boundedTerm(foldText(normal)), nil
	case domain.TypeText, domain.TypeTextarea, domain.TypeURL, domain.TypeUsername, domain.TypeSelect, domain.TypeRadio:
		if !isText {
			return "", errNotText
		}
		return boundedTerm(strings.Join(strings.Fields(foldText(s)), " ")), nil
	}
	if isText {
		return boundedTerm(strings.Join(strings.Fields(foldText(s)), " ")), nil
	}
	canonical := value.Clone()
	if err := canonical.Canonicalize(); err != nil {
		return "", errors.New("must be JSON")
	}
	return boundedTerm(string(canonical)), nil
}

// boundedTerm returns s, or a digest of it if it is longer than maxTerm. It
// does not truncate, because values with a common prefix must differ.
func boundedTerm(s string) string {
	if len(s) <= maxTerm {
		return s
	}
	digest := sha256.Sum256([]byte(s))
	return "#" + hex.EncodeToString(digest[:16])
}

// sortable encodes a number in 16 bytes of text that sort in numeric order.
func sortable(n float64) string {
	if n == 0 {
		n = 0 // replaces negative zero
	}
	bits := math.Float64bits(n)
	if bits>>63 == 1 {
		bits = ^bits
	} else {
		bits |= 1 << 63
	}
	return fmt.Sprintf("%016x", bits)
}
