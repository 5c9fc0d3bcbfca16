package export

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/parquet-go/parquet-go"

	"accountledger/eventstore"
)

// ReadTarget reads a target system's accounts from a file and calls each for
// every one. The file, written by the target or by Accounts, is .ndjson, .csv or
// .parquet with the members sub and revision. Accounts with an erasedTime are
// skipped.
func ReadTarget(path string, each func(Held)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	switch ext := strings.TrimPrefix(filepath.Ext(path), "."); Format(ext) {
	case NDJSON:
		err = readNDJSON(f, each)
	case CSV:
		err = readCSV(f, each)
	case Parquet:
		err = readParquet(f, each)
	default:
		return fmt.Errorf("export: the file name %s must end in .ndjson, .csv or .parquet", path)
	}
	if err != nil {
		return fmt.Errorf("export: %s: %w", path, err)
	}
	return nil
}

var errNoRevision = errors.New("sub or revision is missing or invalid")

func readNDJSON(r io.Reader, each func(Held)) error {
	d := jsontext.NewDecoder(r)
	for n := 1; d.PeekKind() != 0; n++ {
		var a struct {
			Sub      string               `json:"sub"`
			Revision *eventstore.Revision `json:"revision"`
			Erased   string               `json:"erasedTime"`
		}
		if err := json.UnmarshalDecode(d, &a); err != nil {
			return fmt.Errorf("account %d: %T", n, err) // only the type: a JSON error may quote personal data
		}
		if a.Sub == "" || a.Revision == nil {
			return fmt.Errorf("account %d: %w", n, errNoRevision)
		}
		if a.Erased == "" {
			each(Held{a.Sub, *a.Revision})
		}
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return fmt.Errorf("invalid JSON: %T", err)
	}
	return nil
}

func readCSV(r io.Reader, each func(Held)) error {
	in := csv.NewReader(r)
	in.ReuseRecord = true
	header, err := in.Read()
	if err != nil {
		return err
	}
	sub, revision, erased := slices.Index(header, "sub"), slices.Index(header, "revision"), slices.Index(header, "erasedTime")
	if sub < 0 || revision < 0 {
		return errNoRevision
	}
	for n := 1; ; n++ {
		record, err := in.Read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("account %d: %w", n, err)
		}
		value, err := strconv.ParseInt(record[revision], 10, 64)
		if err != nil {
			return fmt.Errorf("account %d: %w", n, errNoRevision)
		}
		if erased < 0 || record[erased] == "" {
			each(Held{record[sub], eventstore.Revision(value)})
		}
	}
}

func readParquet(f *os.File, each func(Held)) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	file, err := parquet.OpenFile(f, info.Size())
	if err != nil {
		return err
	}
	column := func(name string) int {
		if leaf, ok := file.Schema().Lookup(name); ok {
			return leaf.ColumnIndex
		}
		return -1
	}
	sub, revision, erased := column("sub"), column("revision"), column("erasedTime")
	if sub < 0 || revision < 0 {
		return errNoRevision
	}
	rows := make([]parquet.Row, 256)
	for _, group := range file.RowGroups() {
		in := group.Rows()
		for {
			n, err := in.ReadRows(rows)
			for _, row := range rows[:n] {
				var h Held
				isErased, hasRevision := false, false
				row.Range(func(column int, values []parquet.Value) bool {
					switch column {
					case sub:
						h.Sub = values[0].String()
					case revision:
						hasRevision = values[0].Kind() == parquet.Int64
						h.Revision = eventstore.Revision(values[0].Int64())
					case erased:
						isErased = !values[0].IsNull()
					}
					return true
				})
				if !hasRevision {
					return errors.Join(errNoRevision, in.Close())
				}
				if !isErased {
					each(h)
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return errors.Join(err, in.Close())
			}
		}
		if err := in.Close(); err != nil {
			return err
		}
	}
	return nil
}
