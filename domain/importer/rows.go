package importer

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// row is one record of the input.
type row struct {
	record record
	fault  string // why there is no record; the rows after it can be read
}

// maxLine bounds what one line of NDJSON may take of memory.
const maxLine = 4 << 20

// Format is the format that m states, or else the one of an input's name: json,
// ndjson or csv.
func (m *Mapping) Format(name string) (string, error) {
	if m.format != "" {
		return m.format, nil
	}
	switch ext := strings.ToLower(filepath.Ext(name)); ext {
	case ".json":
		return formatJSON, nil
	case ".ndjson", ".jsonl":
		return formatNDJSON, nil
	case ".csv":
		return formatCSV, nil
	}
	return "", errors.New("mapping: format is required, because the input's name does not end in .json, .ndjson, .jsonl or .csv")
}

// rows yields the input's records as they are read: memory holds one. An
// error ends the input; it says where, and never what stands there.
func (m *Mapping) rows(name string, input io.Reader) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		format, err := m.Format(name)
		r := withoutMark(input)
		n := 0
		each := func(record record, fault string) bool {
			n++
			return yield(row{record, fault}, nil)
		}
		switch format {
		case formatJSON:
			err = readJSON(r, m.records, each)
		case formatNDJSON:
			err = readNDJSON(r, each)
		case formatCSV:
			err = readCSV(r, m.delimiter, each)
		}
		if err != nil && err != errStopped {
			yield(row{}, &InputError{n, err})
		}
	}
}

// InputError says why an input could not be read to its end: where, and never
// what stands there.
type InputError struct {
	Row int // the last one that was read
	Err error
}

func (e *InputError) Error() string { return fmt.Sprintf("input, after row %d: %v", e.Row, e.Err) }
func (e *InputError) Unwrap() error { return e.Err }

// withoutMark is input without the byte order mark that some spreadsheets begin
// a file with.
func withoutMark(input io.Reader) *bufio.Reader {
	r := bufio.NewReaderSize(input, 1<<16)
	if mark, _ := r.Peek(3); string(mark) == "\ufeff" {
		r.Discard(3)
	}
	return r
}

// errStopped ends reading because no more rows are wanted.
var errStopped = errors.New("importer: stopped")

// readJSON reads the list at a place of one JSON document.
func readJSON(r io.Reader, at path, each func(record, string) bool) error {
	d := jsontext.NewDecoder(r)
	for _, token := range at {
		if err := enter(d, token); err != nil {
			return err
		}
	}
	if d.PeekKind() != '[' {
		if _, err := d.ReadToken(); err != nil {
			return invalidJSON(d, err)
		}
		return errors.New("there is no list of records; say where it is with records: in the mapping, or format: ndjson")
	}
	if _, err := d.ReadToken(); err != nil {
		return invalidJSON(d, err)
	}
	for d.PeekKind() != ']' {
		record, err := decodeRecord(d)
		if err != nil {
			return invalidJSON(d, err)
		}
		if !each(record, "") {
			return errStopped
		}
	}
	// Read to the end: a document that goes wrong later, or a second one
	// behind it, may hold records that would be missed in silence.
	for {
		_, err := d.ReadToken()
		if err == nil && d.StackDepth() == 0 && d.PeekKind() != 0 {
			return errors.New("there is something behind the JSON document; is it NDJSON?")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return invalidJSON(d, err)
		}
	}
}

// enter moves d to the member's value in the object that comes next.
func enter(d *jsontext.Decoder, member string) error {
	if d.PeekKind() == '{' {
		if _, err := d.ReadToken(); err != nil {
			return invalidJSON(d, err)
		}
		for d.PeekKind() != '}' {
			name, err := d.ReadToken()
			if err != nil {
				return invalidJSON(d, err)
			}
			if name.String() == member {
				return nil
			}
			if err := d.SkipValue(); err != nil {
				return invalidJSON(d, err)
			}
		}
	}
	return missingMember(member)
}

// missingMember is the error of a document that has no such member.
type missingMember string

func (m missingMember) Error() string {
	return fmt.Sprintf("there is no member %q where the mapping's records: leads", string(m))
}

// invalidJSON says where the JSON is wrong. What the decoder says of it may
// quote the input.
func invalidJSON(d *jsontext.Decoder, err error) error {
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return fmt.Errorf("an object has two members of one name before byte %d", d.InputOffset())
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return fmt.Errorf("the JSON ends unfinished at byte %d", d.InputOffset())
	}
	if _, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("not valid JSON behind byte %d", d.InputOffset())
	}
	return err
}

// readNDJSON reads one JSON value a line. A line that is none does not stop
// the lines after it.
func readNDJSON(r *bufio.Reader, each func(record, string) bool) error {
	var line bytes.Buffer
	d := jsontext.NewDecoder(&line)
	for {
		line.Reset()
		tooLong := false
		part, err := r.ReadSlice('\n')
		for ; err == bufio.ErrBufferFull; part, err = r.ReadSlice('\n') {
			if tooLong = tooLong || line.Len() > maxLine; !tooLong {
				line.Write(part)
			}
		}
		line.Write(part)
		if err != nil && err != io.EOF {
			return err
		}
		switch {
		case tooLong:
			if !each(nil, fmt.Sprintf("the line is longer than %d bytes", maxLine)) {
				return errStopped
			}
		case len(bytes.TrimSpace(line.Bytes())) > 0:
			d.Reset(&line)
			record, invalid := decodeRecord(d)
			if invalid == nil && d.PeekKind() != 0 {
				invalid = errors.New("more than one value")
			}
			fault := ""
			if invalid != nil {
				record, fault = nil, "the line is not one JSON value with members of different names"
			}
			if !each(record, fault) {
				return errStopped
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// readCSV reads RFC 4180 with a header row; every value is text.
func readCSV(r io.Reader, delimiter rune, each func(record, string) bool) error {
	c := csv.NewReader(r)
	c.Comma, c.ReuseRecord = delimiter, true
	first, err := c.Read()
	if err != nil {
		return invalidCSV(err)
	}
	header := slices.Clone(first)
	for i, name := range header {
		if name == "" || slices.Contains(header[:i], name) {
			return fmt.Errorf("column %d of the header is empty or there twice", i+1)
		}
	}
	for {
		values, err := c.Read()
		if err == io.EOF {
			return nil
		}
		fault := ""
		switch {
		case errors.Is(err, csv.ErrFieldCount):
			fault = "the row has not as many columns as the header"
		case err != nil:
			return invalidCSV(err)
		case slices.ContainsFunc(values, func(v string) bool { return !utf8.ValidString(v) }):
			fault = "must be text in UTF-8"
		}
		var record record
		if fault == "" {
			object := make(map[string]any, len(header))
			for i, name := range header {
				object[name] = values[i]
			}
			record = object
		}
		if !each(record, fault) {
			return errStopped
		}
	}
}

func invalidCSV(err error) error {
	if e, ok := errors.AsType[*csv.ParseError](err); ok {
		return fmt.Errorf("not valid CSV in line %d: %w", e.Line, e.Err)
	}
	if err == io.EOF {
		return errors.New("there is no header")
	}
	return err
}
