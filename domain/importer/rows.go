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
	fault  string // why the row has no record; later rows are not affected
}

// maxLine is the maximum length of a line of NDJSON in bytes, to bound the
// memory.
const maxLine = 4 << 20

// Format returns the format of an input: the one in the mapping or, without it,
// the one of the input's name. It is json, ndjson or csv.
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

// rows yields the input's records as it reads them and keeps one in memory. Its
// error, an *InputError, ends the input.
func (m *Mapping) rows(name string, input io.Reader) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		format, err := m.Format(name)
		r := skipBOM(input)
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

// InputError is an error that ends an input early. It contains the place of the
// error but no data of the input.
type InputError struct {
	Row int // the last row read
	Err error
}

func (e *InputError) Error() string { return fmt.Sprintf("input, after row %d: %v", e.Row, e.Err) }
func (e *InputError) Unwrap() error { return e.Err }

// skipBOM skips the byte order mark that some spreadsheets write at the beginning
// of a file.
func skipBOM(input io.Reader) *bufio.Reader {
	r := bufio.NewReaderSize(input, 1<<16)
	if mark, _ := r.Peek(3); string(mark) == "\ufeff" {
		r.Discard(3)
	}
	return r
}

// errStopped ends reading because the consumer wants no more rows.
var errStopped = errors.New("importer: stopped")

// readJSON reads the list at a path of one JSON document.
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
		return errors.New("the JSON is not a list of records; set records in the mapping to the list's pointer, or format to ndjson")
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
	// Read to the end: an error later in the document, or a second document,
	// could otherwise hide records.
	for {
		_, err := d.ReadToken()
		if err == nil && d.StackDepth() == 0 && d.PeekKind() != 0 {
			return errors.New("the input continues after the JSON document; for NDJSON, set format in the mapping to ndjson")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return invalidJSON(d, err)
		}
	}
}

// enter moves d to the value of a member of the next object.
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

// missingMember is the error of a document without a member that the path of the
// list names.
type missingMember string

func (m missingMember) Error() string {
	return fmt.Sprintf("the JSON has no member %q; set records in the mapping to the pointer of the list", string(m))
}

// invalidJSON returns an error with the place of err, a decoder's error, whose
// own text may quote the input.
func invalidJSON(d *jsontext.Decoder, err error) error {
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return fmt.Errorf("an object has two members with the same name before byte %d", d.InputOffset())
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return fmt.Errorf("the JSON is truncated at byte %d", d.InputOffset())
	}
	if _, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("invalid JSON after byte %d", d.InputOffset())
	}
	return err
}

// readNDJSON reads one JSON value per line. An invalid line is a fault of its row
// and does not end the input.
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
				record, fault = nil, "the line must be one JSON value without duplicate member names"
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

// readCSV reads RFC 4180 with a header row. Every value is text.
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
			return fmt.Errorf("column %d of the header is empty or a duplicate", i+1)
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
			fault = "the row must have as many columns as the header"
		case err != nil:
			return invalidCSV(err)
		case slices.ContainsFunc(values, func(v string) bool { return !utf8.ValidString(v) }):
			fault = "the row must be valid UTF-8"
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

// invalidCSV returns err with the line of a CSV error.
func invalidCSV(err error) error {
	if e, ok := errors.AsType[*csv.ParseError](err); ok {
		return fmt.Errorf("invalid CSV in line %d: %w", e.Line, e.Err)
	}
	if err == io.EOF {
		return errors.New("the CSV has no header")
	}
	return err
}
