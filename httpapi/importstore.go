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

// The files of a job, by its id and these.
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

// storedImport reads what is kept of a job that does not run. One that its file
// calls running was cut off with the process; its journal says how far it was.
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

// importJob is what is known of a job. The caller holds s.imports.mu.
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

// allImports are the jobs, newest first. The caller holds s.imports.mu.
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

// forgetImports makes room for another job.
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
