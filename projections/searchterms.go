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

// What a term begins with says what it is of. The rest of it is a word, an id
// or a value without line feeds.
const (
	termName     = "n=" // a word of a name
	termEmail    = "e=" // a whole e-mail address
	termPart     = "p=" // a word of an e-mail address that no name has
	termStatus   = "s="
	termGroup    = "g="
	termRole     = "r=" // followed by a slash and the group, or one above it
	termProvider = "i="
	termField    = "f" // followed by the key, '=' and a value
)

const (
	maxTerm     = 100 // bytes; what is longer is cut, or stands as a digest
	maxElements = 100 // of an array that are indexed
)

// index makes of an account's row what the index has of it.
func index(row AccountRow, fields map[string]domain.DataType) (indexed, error) {
	a, err := row.Account()
	if err != nil {
		return indexed{}, err
	}
	x := indexed{id: searchID(a.Sub, a.CreatedTime), sub: a.Sub, created: a.CreatedTime.UnixMicro(), updated: a.UpdatedTime.UnixMicro()}
	switch {
	case a.Erased():
		return x, nil
	case a.Status == domain.StatusCombined:
		// What it was is the survivor's now. It can still be asked for.
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
			x.name = cut(fold(strings.TrimSpace(i.FamilyName + " " + i.GivenName)))
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

// emailTerms adds the terms of an address to those of the names.
func emailTerms(terms map[string]bool, email string) {
	if email == "" {
		return
	}
	terms[termEmail+cut(fold(email))] = true
	for _, word := range words(email) {
		if !terms[termName+word] {
			terms[termPart+word] = true
		}
	}
}

// fold makes alike what differs in case, accents and form only, and puts
// everything on one line.
func fold(s string) string {
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

// words are what s has between everything that is neither letter nor digit,
// folded.
func words(s string) []string {
	all := strings.FieldsFunc(fold(s), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.Is(unicode.M, r) })
	for i := range all {
		all[i] = cut(all[i])
	}
	return all
}

// searchWords are the words of what somebody searches for: an e-mail address,
// or the beginning of one, is one.
func searchWords(s string) []string {
	var all []string
	for token := range strings.FieldsSeq(fold(s)) {
		if at := strings.IndexByte(token, '@'); at > 0 {
			all = append(all, cut(token))
		} else {
			all = append(all, words(token)...)
		}
	}
	return all
}

// cut bounds a term. What is asked for is cut alike.
func cut(s string) string {
	if len(s) <= maxTerm {
		return s
	}
	end := maxTerm
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// fieldTerms are the terms of a custom field's value. An account has a value
// if it has its term; of an array, that of each element.
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
		return nil // it was stored before the definition said so
	}
	return []string{term}
}

// Errors of fieldTerm, as rules.
var (
	errNotNumber = errors.New("must be a number")
	errNotDate   = errors.New("must be a date, YYYY-MM-DD")
	errNotText   = errors.New("must be a string")
)

// fieldTerm is the term of one value. Those of numbers and dates sort as the
// values do.
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
		return bounded(fold(normal)), nil
	case domain.TypeText, domain.TypeTextarea, domain.TypeURL, domain.TypeUsername, domain.TypeSelect, domain.TypeRadio:
		if !isText {
			return "", errNotText
		}
		return bounded(strings.Join(strings.Fields(fold(s)), " ")), nil
	}
	if isText {
		return bounded(strings.Join(strings.Fields(fold(s)), " ")), nil
	}
	canonical := value.Clone()
	if err := canonical.Canonicalize(); err != nil {
		return "", errors.New("must be JSON")
	}
	return bounded(string(canonical)), nil
}

// bounded is a value as long as a term may be: a digest of a longer one, for
// two values that begin alike are not the same.
func bounded(s string) string {
	if len(s) <= maxTerm {
		return s
	}
	digest := sha256.Sum256([]byte(s))
	return "#" + hex.EncodeToString(digest[:16])
}

// sortable writes numbers so that they sort as text, all in 16 bytes.
func sortable(n float64) string {
	if n == 0 {
		n = 0 // and not negative
	}
	bits := math.Float64bits(n)
	if bits>>63 == 1 {
		bits = ^bits
	} else {
		bits |= 1 << 63
	}
	return fmt.Sprintf("%016x", bits)
}
