package importer

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
)

// Summary is the totals of a job over all its runs.
type Summary struct {
	Rows      int64            `json:"rows"`
	Created   int64            `json:"created"`
	Updated   int64            `json:"updated"`
	Unchanged int64            `json:"unchanged"`
	Failed    int64            `json:"failed"`
	Events    int64            `json:"events"`
	Findings  []Count          `json:"findings"`        // warnings and faults, most frequent first once the job has ended
	Groups    []string         `json:"groups,omitzero"` // ids of the groups created
	Roles     []string         `json:"roles,omitzero"`  // ids of the roles created
	Missed    map[string]int64 `json:"missed"`          // numbers of rows, by member of the source that the mapping neither uses nor ignores
}

// Count is the number of rows with a finding.
type Count struct {
	Finding
	Rows int64 `json:"rows"`
}

// maxDistinct is the maximum number of distinct findings and members in a summary,
// so that an input with random names does not exhaust the memory.
const maxDistinct = 500

// others replaces all findings and members beyond maxDistinct.
const others = "(others)"

// add adds the result of a row.
func (s *Summary) add(r Result) {
	s.Rows++
	s.Events += int64(r.Events)
	switch r.Outcome {
	case Created:
		s.Created++
	case Updated:
		s.Updated++
	case Unchanged:
		s.Unchanged++
	case Failed:
		s.Failed++
	}
	for _, findings := range [][]Finding{r.Warnings, r.Faults} {
		for _, f := range findings {
			i := slices.IndexFunc(s.Findings, func(c Count) bool { return c.Finding == f })
			if i < 0 && len(s.Findings) >= maxDistinct {
				f = Finding{Rule: others}
				i = slices.IndexFunc(s.Findings, func(c Count) bool { return c.Finding == f })
			}
			if i < 0 {
				i, s.Findings = len(s.Findings), append(s.Findings, Count{Finding: f})
			}
			s.Findings[i].Rows++
		}
	}
	seen := map[string]bool{} // count a member once per row, even if several list elements have it
	for _, name := range r.unmapped {
		if _, known := s.Missed[name]; !known && len(s.Missed) >= maxDistinct {
			name = others
		}
		if !seen[name] {
			s.Missed[name]++
		}
		seen[name] = true
	}
}

// recorder writes the results and the journal. Rows that the journal records as
// done are durable in the ledger. The files need not survive a power failure:
// without them, the next run compares the rows again and changes nothing.
type recorder struct {
	results io.Writer
	file    *os.File // of results if the recorder opened it
	buffer  *bufio.Writer
	journal string
	state   journal
	saved   time.Time
}

// journal is the contents of the file from which an import resumes.
type journal struct {
	Input    string    `json:"input"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	Mapping  string    `json:"mapping"` // digest
	Ledger   string    `json:"ledger"`
	Position int64     `json:"position"` // the highest position of the imported events
	Bytes    int64     `json:"bytes"`    // the length of the results
	Summary  Summary   `json:"summary"`
}

// Progress returns the summary in a journal file, and false if there is none.
func Progress(path string) (Summary, bool) {
	var state journal
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &state) != nil {
		return Summary{}, false
	}
	return state.Summary, true
}

// saveEvery is the interval between saves of the journal. After a kill, the rows
// since the last save are compared again.
const saveEvery = 200 * time.Millisecond

// openRecorder opens the results and the journal. It resumes from the journal if
// it belongs to this import, and otherwise starts at the first row.
func (j *Job) openRecorder() (*recorder, error) {
	w := &recorder{results: j.Results, journal: j.Journal, saved: time.Now()}
	fresh := journal{Input: j.Input.Name, Size: j.Input.Size, Modified: j.Input.Modified.UTC(), Mapping: j.Mapping.Digest,
		Ledger: j.LedgerID, Summary: Summary{Findings: []Count{}, Missed: map[string]int64{}}}
	w.state = fresh
	if j.Resume && j.Journal != "" {
		var old journal
		data, err := os.ReadFile(j.Journal)
		if err == nil && json.Unmarshal(data, &old) == nil && old.Position <= int64(j.Head) &&
			old.Input == fresh.Input && old.Size == fresh.Size && old.Modified.Equal(fresh.Modified) &&
			old.Mapping == fresh.Mapping && old.Ledger == fresh.Ledger && old.Summary.Missed != nil {
			w.state = old
		}
	}
	if j.ResultsFile != "" {
		f, err := os.OpenFile(j.ResultsFile, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("results: %w", err)
		}
		info, err := f.Stat()
		if err == nil && info.Size() < w.state.Bytes {
			w.state = fresh // some results are lost: start again to write all of them
		}
		if err == nil {
			err = f.Truncate(w.state.Bytes)
		}
		if err == nil {
			_, err = f.Seek(w.state.Bytes, io.SeekStart)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("results: %w", err)
		}
		w.file, w.results = f, f
	}
	w.buffer = bufio.NewWriterSize(w.results, 1<<16)
	return w, w.save() // fail now if the journal cannot be written
}

// add writes the result of a row and saves the journal if it is due.
func (w *recorder) add(r Result) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	w.state.Summary.add(r)
	w.state.Position = max(w.state.Position, int64(r.position))
	w.state.Bytes += int64(len(line)) + 1
	if _, err := w.buffer.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if time.Since(w.saved) < saveEvery {
		return nil
	}
	return w.save()
}

// save writes the results, then the journal, which must never be ahead of them.
func (w *recorder) save() error {
	w.saved = time.Now()
	if err := w.buffer.Flush(); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if w.journal == "" {
		return nil
	}
	data, err := json.Marshal(w.state)
	if err == nil {
		err = os.WriteFile(w.journal+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(w.journal+".new", w.journal)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// close writes everything and closes the results. It removes the journal of a
// complete import, so that the next import reads every row.
func (w *recorder) close(complete bool) error {
	slices.SortStableFunc(w.state.Summary.Findings, func(a, b Count) int { return int(b.Rows - a.Rows) })
	err := w.save()
	if w.file != nil {
		if closeErr := w.file.Close(); err == nil {
			err = closeErr
		}
	}
	if complete && err == nil && w.journal != "" {
		err = os.Remove(w.journal)
	}
	return err
}
