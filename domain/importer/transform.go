package importer

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/nyaruka/phonenumbers"
	"go.yaml.in/yaml/v3"
)

// transform converts the text of a scalar to another value. Its error states the
// rule that the text breaks and never contains the text.
type transform func(text string) (any, error)

// transforms parses one transform or a list of them: a name or {name: argument}.
func (p *mappingParser) transforms(n *yaml.Node, what string, f *field) {
	list := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		list = n.Content
	}
	for _, step := range list {
		if step.Kind == yaml.ScalarNode {
			p.transform(step, step.Value, nil, what, f)
			continue
		}
		p.object(step, what, func(name string, key, value *yaml.Node) { p.transform(key, name, value, what, f) })
	}
}

// transform parses one transform and adds it to f.
func (p *mappingParser) transform(at *yaml.Node, name string, argument *yaml.Node, what string, f *field) {
	what += "." + name
	if argument != nil && (name == "trim" || name == "lower" || name == "json") {
		p.fault(at, "%s: takes no argument", what)
	}
	var t transform
	switch name {
	case "trim":
		t = func(text string) (any, error) { return strings.TrimSpace(text), nil }
	case "lower":
		t = func(text string) (any, error) { return strings.ToLower(text), nil }
	case "json":
		t = parseJSON
	case "date":
		order := "ymd"
		if argument != nil {
			order = p.text(argument, what, "ymd", "dmy", "mdy")
		}
		t = func(text string) (any, error) { return parseDate(text, order) }
	case "phone":
		region := ""
		if argument != nil {
			region = p.text(argument, what)
			if !phonenumbers.GetSupportedRegions()[region] {
				p.fault(argument, "%s: must be a region (ISO 3166-1) like DE", what)
			}
		}
		t = func(text string) (any, error) { return parsePhone(text, region) }
	case "lookup":
		table := map[string]string{}
		if argument == nil {
			p.fault(at, "%s: requires a table, {lookup: {from: to}}", what)
			return
		}
		p.object(argument, what, func(from string, _, to *yaml.Node) { table[from] = p.text(to, what) })
		t = func(text string) (any, error) {
			if to, ok := table[text]; ok {
				return to, nil
			}
			return nil, errors.New("must be a value of the lookup table")
		}
	default:
		p.fault(at, "%s: unknown transform; use one of date, json, lookup, lower, phone, trim", what)
		return
	}
	f.transforms = append(f.transforms, t)
}

var (
	dateParts   = regexp.MustCompile(`^(\d{1,4})[-/. ](\d{1,2})[-/. ](\d{1,4})$`)
	compactDate = regexp.MustCompile(`^\d{8}$`)
	midnight    = regexp.MustCompile(`[T ]00:00(:00(\.0+)?)?(Z|[+-]00:?00)?$`)
)

// parseDate converts a date whose parts have the given order to YYYY-MM-DD. A
// first part with four digits is always the year. A time of day is accepted only
// if it is midnight, because any other would be lost.
func parseDate(text, order string) (string, error) {
	bad := fmt.Errorf("must be a date whose parts are in the order %s, with a year of four digits", order)
	text = midnight.ReplaceAllString(strings.TrimSpace(text), "")
	if compactDate.MatchString(text) {
		text = text[:4] + "-" + text[4:6] + "-" + text[6:]
	}
	parts := dateParts.FindStringSubmatch(text)
	if parts == nil {
		return "", bad
	}
	year, month, day := parts[1], parts[2], parts[3]
	switch {
	case len(year) == 4:
	case order == "dmy":
		day, month, year = parts[1], parts[2], parts[3]
	case order == "mdy":
		month, day, year = parts[1], parts[2], parts[3]
	}
	if len(year) != 4 || len(day) > 2 {
		return "", bad
	}
	date, err := time.Parse("2006-1-2", year+"-"+month+"-"+day)
	if err != nil {
		return "", bad
	}
	return date.Format(time.DateOnly), nil
}

// parsePhone converts a telephone number to E.164. Without a region, the number
// needs a country code after + or 00. domain.Normalize checks later whether the
// number is valid.
func parsePhone(text, region string) (string, error) {
	text = strings.TrimSpace(text)
	if region == "" {
		region = phonenumbers.UNKNOWN_REGION
		if national, ok := strings.CutPrefix(text, "00"); ok {
			text = "+" + national
		}
	}
	n, err := phonenumbers.Parse(text, region)
	if err != nil || n.GetExtension() != "" {
		return "", errors.New("must be a telephone number with its country code")
	}
	return phonenumbers.Format(n, phonenumbers.E164), nil
}

// parseJSON parses text as a JSON value. CSV inputs need it for numbers, booleans
// and lists.
func parseJSON(text string) (any, error) {
	d := jsontext.NewDecoder(strings.NewReader(text))
	v, err := decodeRecord(d)
	if err != nil || strings.TrimSpace(text[d.InputOffset():]) != "" {
		return nil, errors.New("must be a JSON value")
	}
	return v, nil
}

// parseTime parses RFC 3339, or seconds or milliseconds since 1970. Numbers from
// 10^11 on are milliseconds: as seconds they would be after the year 5000, and
// smaller numbers would be before 1973 as milliseconds.
func parseTime(text string, now time.Time) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if n, notANumber := strconv.ParseInt(text, 10, 64); notANumber == nil {
		err = nil
		if t = time.Unix(n, 0); n >= 1e11 {
			t = time.UnixMilli(n)
		}
	}
	t = t.UTC().Truncate(time.Microsecond)
	if err != nil || t.After(now) || t.Year() < 1 {
		return t, errors.New("must be a time in the past: RFC 3339, or seconds or milliseconds since 1970")
	}
	return t, nil
}
