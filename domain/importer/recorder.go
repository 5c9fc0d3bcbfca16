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

// Summary adds up the results of a job, over all its runs.
type Summary struct {
	Rows      int64            `json:"rows"`
	Created   int64            `json:"created"`
	Updated   int64            `json:"updated"`
	Unchanged int64            `json:"unchanged"`
	Failed    int64            `json:"failed"`
	Events    int64            `json:"events"`
	Findings  []Count          `json:"findings"`        // warnings and faults, most frequent first once the job has ended
	Groups    []string         `json:"groups,omitzero"` // ids of those that were made
	Roles     []string         `json:"roles,omitzero"`  // likewise
	Missed    map[string]int64 `json:"missed"`          // members of the source that the mapping does not deal with, and in how many rows
}

// Count says in how many rows something was found.
type Count struct {
	Finding
	Rows int64 `json:"rows"`
}

// maxDistinct bounds what a summary tells apart: an input whose members have
// random names must not fill the memory.
const maxDistinct = 500

// others stands for what is beyond maxDistinct.
const others = "(others)"

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
	seen := map[string]bool{} // elements of one list share a name
	for _, name := range r.missed {
		if _, known := s.Missed[name]; !known && len(s.Missed) >= maxDistinct {
			name = others
		}
		if !seen[name] {
			s.Missed[name]++
		}
		seen[name] = true
	}
}

// recorder writes results and the journal. What the journal says is done is
// durable in the ledger; whether the files themselves survive a power failure
// does not matter: without them the rows are compared again, not repeated.
type recorder struct {
	results io.Writer
	file    *os.File // results, if it is ours to close
	buffer  *bufio.Writer
	journal string
	state   journal
	saved   time.Time
}

// journal is the file that an interrupted import goes on from.
type journal struct {
	Input    string    `json:"input"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	Mapping  string    `json:"mapping"` // digest
	Ledger   string    `json:"ledger"`
	Position int64     `json:"position"` // the log had come so far
	Bytes    int64     `json:"bytes"`    // of the results
	Summary  Summary   `json:"summary"`
}

// Progress is how far the import is that a journal is of; false without one.
func Progress(path string) (Summary, bool) {
	var state journal
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &state) != nil {
		return Summary{}, false
	}
	return state.Summary, true
}

// saveEvery bounds how many rows are compared again after a kill.
const saveEvery = 200 * time.Millisecond

// openRecorder starts at the journal's end, or at the first row.
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
			w.state = fresh // some results are lost; all rows will be told again
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
	return w, w.save() // a journal that cannot be written is better found now
}

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

// save writes the results first: a journal must not know more than they.
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

// close ends the recording. The journal of a complete import is removed, so
// that the next one looks at every row again.
func (w *recorder) close(complete bool) error {
	slices.SortStableFunc(w.state.Summary.Findings, func(a, b Count) int { return int(b.Rows - a.Rows) })
	err := w.save()
	if w.file != nil {
		if closing := w.file.Close(); err == nil {
			err = closing
		}
	}
	if complete && err == nil && w.journal != "" {
		err = os.Remove(w.journal)
	}
	return err
}
