package httpapi

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"accountledger/domain/importer"
)

// Suffixes of a job's files. The names begin with the job's id.
const (
	jobSuffix     = ".json"
	resultsSuffix = ".results.ndjson"
	journalSuffix = ".journal"
)

func (s *server) importFile(id, suffix string) string { return filepath.Join(s.ImportDir, id+suffix) }

func (s *server) storeImport(stored storedImport) error {
	data, err := json.Marshal(stored)
	if err == nil {
		err = os.MkdirAll(s.ImportDir, 0o700)
	}
	if err == nil {
		err = writePrivate(s.importFile(stored.Job.ImportID, jobSuffix), data)
	}
	if err != nil {
		return fmt.Errorf("httpapi: store import: %w", err)
	}
	return nil
}

// storedImport reads a job that is not running. If its file says running, the
// process stopped during the import; the journal says how far it had come.
func (s *server) storedImport(id string) (stored storedImport, err error) {
	data, err := os.ReadFile(s.importFile(id, jobSuffix))
	if err == nil {
		err = json.Unmarshal(data, &stored)
	}
	if err != nil {
		return stored, fmt.Errorf("httpapi: read import: %w", err)
	}
	if stored.Job.State == importRunning {
		stored.Job.State = importInterrupted
	}
	if summary, ok := importer.Progress(s.importFile(id, journalSuffix)); ok {
		stored.Job.count(summary)
	}
	return stored, nil
}

// importJob returns a job, running or stored. The caller holds s.imports.mu.
func (s *server) importJob(id string) (importJob, error) {
	missing := newProblem(codeImportNotFound, "There is no such import.")
	parsed, err := uuid.Parse(id)
	if err != nil || s.ImportDir == "" {
		return importJob{}, missing
	}
	if running := s.imports.running[parsed.String()]; running != nil {
		return running.job, nil
	}
	stored, err := s.storedImport(parsed.String())
	if errors.Is(err, fs.ErrNotExist) {
		return importJob{}, missing
	}
	return stored.Job, err
}

// allImports returns all jobs, newest first. The caller holds s.imports.mu.
func (s *server) allImports() ([]importJob, error) {
	files, err := filepath.Glob(filepath.Join(s.ImportDir, "*"+jobSuffix))
	if err != nil || s.ImportDir == "" {
		return nil, err
	}
	var all []importJob
	for _, file := range files {
		job, err := s.importJob(strings.TrimSuffix(filepath.Base(file), jobSuffix))
		if err != nil {
			return nil, err
		}
		all = append(all, job)
	}
	slices.SortFunc(all, func(a, b importJob) int {
		return cmp.Or(b.CreatedTime.Compare(a.CreatedTime), strings.Compare(a.ImportID, b.ImportID))
	})
	return all, nil
}

// forgetImports deletes the oldest jobs to make room for another one.
func (s *server) forgetImports() error {
	all, err := s.allImports()
	for i := maxImports - 1; i < len(all) && err == nil; i++ {
		for _, suffix := range []string{resultsSuffix, journalSuffix, jobSuffix} {
			if gone := os.Remove(s.importFile(all[i].ImportID, suffix)); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}
	return err
}
