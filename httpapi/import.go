package httpapi

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/domain/importer"
)

// An import is processed while it is read: the connection is the queue, and no
// imported data is written to the server's disk, in clear or sealed. A job
// stores only the outcome of each row, by row number. To resume an interrupted
// job, the client sends the same request with the same Idempotency-Key; rows
// that are done are skipped.

func (s *server) importRoutes() {
	never := func(context.Context, *call, *postImportInput) (*answer, error) {
		panic("httpapi: imports answer through raw")
	}
	handle(s, route{
		method: "POST", path: "/v1/imports", name: "importAccounts", scope: scopeAccountsWrite, status: 201, answer: importJob{}, job: true,
		summary: "Import accounts",
		text: "Creates or updates an account for each row of the body while it is received; the response follows when all rows are processed. A mapping says how the members of a row become an account: name one of the server's mappings, or send one as the part mapping of multipart/form-data, before the part input. " +
			"The job lists the outcome of each row. If the connection breaks, the import is interrupted; send the same request with the same Idempotency-Key to resume it. No row is imported twice. Only callers with the scope accounts:admin can write read-only and internal fields. At most one import runs at a time.",
		codes: []domain.Code{domain.CodeInvalidRequest, domain.CodeIdempotencyKeyReused, codeImportRefused, codeTooManyJobs, codeUnsupportedMediaType, codeBodyTooLarge, codeTimeout},
		raw:   s.postImport, takes: []string{"application/x-ndjson", "text/csv", "application/json", "multipart/form-data"},
	}, never)
	handle(s, route{
		method: "GET", path: "/v1/imports", name: "listImports", scope: scopeAccountsWrite, status: 200, answer: importJobs{}, job: true,
		summary: "List the imports",
		text:    "Returns the last hundred imports, newest first.",
	}, s.listImports)
	handle(s, route{
		method: "GET", path: "/v1/imports/{importId}", name: "getImport", scope: scopeAccountsWrite, status: 200, answer: importJob{}, job: true,
		summary: "Get an import",
		text:    "Returns the import's state and the number of rows by outcome.",
		codes:   []domain.Code{codeImportNotFound},
	}, s.getImport)
	handle(s, route{
		method: "GET", path: "/v1/imports/{importId}/rows", name: "listImportRows", scope: scopeAccountsWrite, status: 200, answer: importRows{}, job: true,
		summary: "List the outcomes of an import's rows",
		text:    "Returns the outcome of each row in input order. Faults name the member and the rule, never the value.",
		codes:   []domain.Code{domain.CodeInvalidRequest, domain.CodeInvalidCursor, codeImportNotFound},
	}, s.listImportRows)
	handle(s, route{
		method: "DELETE", path: "/v1/imports/{importId}", name: "cancelImport", scope: scopeAccountsWrite, status: 200, answer: importJob{}, job: true,
		summary: "Cancel an import",
		text:    "Finishes the rows in progress and stops. Imported rows stay imported. Cancelling an import that has ended changes nothing.",
		codes:   []domain.Code{codeImportNotFound},
	}, s.cancelImport)
}

// States of an import.
const (
	importRunning     = "running"
	importDone        = "done"
	importFailed      = "failed"      // the input could not be read to its end
	importCancelled   = "cancelled"   // by a caller
	importInterrupted = "interrupted" // the connection or the server stopped; the same request resumes it
)

// importJob is an import as it is stored and as the API returns it.
type importJob struct {
	ImportID    string       `json:"importId" doc:"The import's id."`
	State       string       `json:"state" enum:"running,done,failed,cancelled,interrupted" doc:"running; done; failed: the input could not be read to its end; cancelled; interrupted: the connection or the server stopped; send the same request again to resume."`
	Source      string       `json:"source" doc:"The source named by the mapping."`
	Format      string       `json:"format" doc:"ndjson, csv or json."`
	Actor       domain.Actor `json:"actor" doc:"Who started the import."`
	CreatedTime time.Time    `json:"createdTime" doc:"When the import began."`
	EndedTime   time.Time    `json:"endedTime,omitzero" doc:"When the import ended or was interrupted."`
	Detail      string       `json:"detail,omitzero" doc:"Why the import failed."`
	Rows        int64        `json:"rows" doc:"Number of rows processed."`
	Created     int64        `json:"created" doc:"Number of rows that created an account."`
	Updated     int64        `json:"updated" doc:"Number of rows that changed an account."`
	Unchanged   int64        `json:"unchanged" doc:"Number of rows that changed nothing."`
	Failed      int64        `json:"failed" doc:"Number of rows that were refused."`
	Events      int64        `json:"events" doc:"Number of events appended."`
}

func (j *importJob) count(s importer.Summary) {
	j.Rows, j.Created, j.Updated, j.Unchanged, j.Failed, j.Events = s.Rows, s.Created, s.Updated, s.Unchanged, s.Failed, s.Events
}

// storedImport is the content of a job's file.
type storedImport struct {
	Job    importJob `json:"job"`
	Digest string    `json:"digest"` // of mapping and format, to detect a different request
}

// importJobs is the list of all jobs.
type importJobs struct {
	Imports []importJob `json:"imports" doc:"The imports, newest first."`
	Next    *string     `json:"next" doc:"Always null: the list is never paged."`
}

// maxImports is how many jobs are stored.
const maxImports = 100

// imports are the jobs of this server.
type imports struct {
	mu      sync.Mutex
	running map[string]*runningImport
}

type runningImport struct {
	job       importJob
	cancel    context.CancelFunc
	cancelled bool
}

// importRequest is a parsed import request.
type importRequest struct {
	id      string
	mapping *importer.Mapping
	format  string
	input   io.Reader
	actor   domain.Actor
	limited bool // may not write read-only and internal fields
}

func (r importRequest) digest() string { return r.mapping.Digest + "." + r.format }

// slowSender is how long the server waits for more data of a body.
const slowSender = 60 * time.Second

// received reads a body as long as data keeps arriving, without a limit on the
// total time.
type received struct {
	ctx     context.Context // of the import; reads fail once it is done
	control *http.ResponseController
	r       io.Reader
}

func (b received) Read(p []byte) (int, error) {
	// Readers without deadlines, such as those of tests, do not need them.
	if err := b.control.SetReadDeadline(time.Now().Add(slowSender)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.r.Read(p)
}

func (s *server) postImport(ctx context.Context, c *call) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.Closing, cancel)()
	control := http.NewResponseController(c.w)
	// Ends a read that is waiting for the client when the import is cancelled.
	defer context.AfterFunc(ctx, func() { control.SetReadDeadline(time.Now()) })()
	what, err := s.importRequest(ctx, c)
	if err != nil {
		return err
	}
	running, job, err := s.beginImport(what, cancel)
	if err != nil {
		return err
	}
	var failed error
	if running != nil {
		job, failed = s.runImport(ctx, what, running)
	}
	if err := control.SetWriteDeadline(time.Now().Add(slowReader)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if failed != nil {
		return failed
	}
	body, err := json.Marshal(job)
	if err != nil {
		return err
	}
	// Interrupting a read, to cancel the import, also ends the request's context.
	request := context.WithoutCancel(ctx)
	head, err := s.Log.Head(request)
	if err != nil {
		return err
	}
	settled := s.settled(request, head) // so that the caller can read the imported accounts
	header := c.w.Header()
	header.Set("Ledger-Position", settled.LedgerPosition)
	header.Set("Ledger-Lag", settled.LedgerLag)
	header.Set("Content-Type", "application/json")
	header.Set("Location", "/v1/imports/"+job.ImportID)
	c.w.WriteHeader(http.StatusCreated)
	_, err = c.w.Write(body)
	if err != nil {
		s.Logger.WarnContext(ctx, "cannot send the outcome of an import", "import", job.ImportID, "request", c.id)
	}
	return nil
}

// beginImport registers the job. If it has ended before, beginImport returns its
// outcome and a nil runningImport.
func (s *server) beginImport(r importRequest, cancel context.CancelFunc) (*runningImport, importJob, error) {
	s.imports.mu.Lock()
	defer s.imports.mu.Unlock()
	if len(s.imports.running) > 0 {
		return nil, importJob{}, newProblem(codeTooManyJobs, "Another import is running; retry later.").with("Retry-After", "10")
	}
	stored, err := s.storedImport(r.id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		stored.Job = importJob{ImportID: r.id, Source: r.mapping.Source, Format: r.format, Actor: r.actor, CreatedTime: s.Now().UTC()}
		stored.Digest = r.digest()
		if err := s.forgetImports(); err != nil {
			return nil, importJob{}, err
		}
	case err != nil:
		return nil, importJob{}, err
	case stored.Digest != r.digest():
		return nil, importJob{}, &domain.Error{Code: domain.CodeIdempotencyKeyReused, Detail: "This Idempotency-Key has already been used for another request."}
	case stored.Job.State != importInterrupted:
		return nil, stored.Job, nil
	}
	stored.Job.State, stored.Job.EndedTime = importRunning, time.Time{}
	if err := s.storeImport(stored); err != nil {
		return nil, importJob{}, err
	}
	running := &runningImport{job: stored.Job, cancel: cancel}
	s.imports.running[r.id] = running
	return running, stored.Job, nil
}

// runImport imports the rows and stores the outcome.
func (s *server) runImport(ctx context.Context, r importRequest, running *runningImport) (importJob, error) {
	head, err := s.Log.Head(ctx)
	var summary importer.Summary
	if err == nil {
		job := importer.Job{
			Ledger: s.Ledger, Head: head, Mapping: r.mapping,
			Input:       importer.Input{Name: r.id + "." + r.format, Reader: r.input},
			ResultsFile: s.importFile(r.id, resultsSuffix), Journal: s.importFile(r.id, journalSuffix), Resume: true,
			Actor: r.actor, Limited: r.limited, Nameless: true, Now: s.Now,
			Progress: func(sum importer.Summary, _ int64) {
				s.imports.mu.Lock()
				defer s.imports.mu.Unlock()
				running.job.count(sum)
			},
		}
		summary, err = job.Run(ctx)
	}
	s.imports.mu.Lock()
	defer s.imports.mu.Unlock()
	delete(s.imports.running, r.id)
	job := running.job
	if summary.Rows > 0 {
		job.count(summary)
	}
	job.State, job.EndedTime = importDone, s.Now().UTC()
	broken, input := errors.AsType[*importer.InputError](err)
	tooLarge, limit := errors.AsType[*http.MaxBytesError](err)
	_, cut := errors.AsType[brokenBody](err)
	var failed error
	switch {
	case err == nil:
	case running.cancelled:
		job.State = importCancelled
	case limit:
		job.State, job.Detail = importFailed, fmt.Sprintf("The input is larger than %d bytes.", tooLarge.Limit)
		failed = newProblem(codeBodyTooLarge, "%s", job.Detail)
	case cut || ctx.Err() != nil:
		job.State = importInterrupted
		failed = newProblem(codeUnavailable, "The import was interrupted after row %d; send the same request with the same Idempotency-Key to resume it.", job.Rows).with("Retry-After", "5")
	case input:
		job.State, job.Detail = importFailed, broken.Error()
		failed = newProblem(codeImportRefused, "%s", job.Detail)
	default:
		job.State, failed = importInterrupted, err
	}
	return job, errors.Join(failed, s.storeImport(storedImport{job, r.digest()}))
}

// brokenBody is the error of a body that ended early.
type brokenBody struct{ error }

func (b brokenBody) Unwrap() error { return b.error }

// unbroken marks the errors of reading a body, to tell them from invalid input.
type unbroken struct{ r io.Reader }

func (u unbroken) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && err != io.EOF {
		err = brokenBody{err}
	}
	return n, err
}

// maxMapping is the maximum size of a mapping in bytes.
const maxMapping = 256 << 10

var mappingName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// importRequest reads everything of the request except the rows.
func (s *server) importRequest(ctx context.Context, c *call) (importRequest, error) {
	r := importRequest{actor: c.actor, limited: !c.admin}
	if s.ImportDir == "" {
		return r, newProblem(codeUnavailable, "This server is not configured to accept imports.")
	}
	key := c.r.Header.Get("Idempotency-Key")
	if len(key) > 255 {
		return r, refusedParameter("Idempotency-Key", "must be at most 255 characters long")
	}
	r.id = Command{IdempotencyKey: key}.newID(c)
	body := io.Reader(received{ctx, http.NewResponseController(c.w), http.MaxBytesReader(c.w, c.r.Body, s.ImportLimit)})
	kind, params, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	name, text := c.r.URL.Query().Get("mapping"), []byte(nil)
	switch {
	case err != nil:
	case kind == "multipart/form-data":
		parts := multipart.NewReader(body, params["boundary"])
		part, err := parts.NextPart()
		if err != nil || part.FormName() != "mapping" || name != "" {
			return r, refusedParameter("mapping", "must be the first part, and must not also be a query parameter")
		}
		if text, err = io.ReadAll(io.LimitReader(part, maxMapping+1)); err != nil {
			return r, refusedParameter("mapping", "cannot be read")
		}
		if part, err = parts.NextPart(); err != nil || part.FormName() != "input" {
			return r, refusedParameter("input", "must be the second part")
		}
		body, kind = part, part.Header.Get("Content-Type")
		if kind, _, err = mime.ParseMediaType(kind); err != nil || !slices.Contains([]string{"application/x-ndjson", "text/csv", "application/json"}, kind) {
			kind = typeOfName(part.FileName())
		}
	case !mappingName.MatchString(name):
		return r, refusedParameter("mapping", "must be the name of a mapping on the server: lower-case letters, digits, - and _")
	default:
		if text, err = os.ReadFile(filepath.Join(s.MappingDir, name+".yaml")); s.MappingDir == "" || errors.Is(err, fs.ErrNotExist) {
			return r, refusedParameter("mapping", "must be the name of a mapping on the server")
		} else if err != nil {
			return r, err
		}
	}
	r.format = map[string]string{"application/x-ndjson": "ndjson", "text/csv": "csv", "application/json": "json"}[kind]
	if r.format == "" {
		return r, newProblem(codeUnsupportedMediaType, "The body must be application/x-ndjson, text/csv or application/json, or multipart/form-data with a mapping and one of these.").
			with("Accept", "application/x-ndjson, text/csv, application/json, multipart/form-data")
	}
	if len(text) > maxMapping {
		return r, newProblem(codeImportRefused, "The mapping is larger than %d bytes.", maxMapping)
	}
	if r.mapping, err = importer.ParseMapping(text); err != nil {
		return r, newProblem(codeImportRefused, "%s", err)
	}
	if format, _ := r.mapping.Format("input." + r.format); format != r.format {
		return r, newProblem(codeImportRefused, "The mapping is for the format %s.", format)
	}
	if r.mapping.Defines() {
		return r, newProblem(codeImportRefused, "The mapping creates groups or roles, which requires reading the input twice; use the command accountledger import instead.")
	}
	r.input = unbroken{body}
	return r, nil
}

func refusedParameter(name, detail string) error {
	return invalidParameters(fault{Parameter: name, Detail: detail})
}

// typeOfName derives the media type from a file name, for parts without one.
func typeOfName(name string) string {
	return map[string]string{".ndjson": "application/x-ndjson", ".jsonl": "application/x-ndjson", ".csv": "text/csv", ".json": "application/json"}[strings.ToLower(filepath.Ext(name))]
}

type postImportInput struct {
	Mapping        string `query:"mapping" doc:"Name of a mapping on the server. Not allowed with multipart/form-data, which contains the mapping." example:"crm"`
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" doc:"Identifies the job: repeating the request with the same key resumes an interrupted import, and otherwise returns the first outcome."`
}

// ImportID identifies the import a request is about.
type ImportID struct {
	ID string `path:"importId" doc:"The import's id, a UUID."`
}

type getImportInput struct{ ImportID }

func (s *server) getImport(_ context.Context, _ *call, in *getImportInput) (*answer, error) {
	s.imports.mu.Lock()
	defer s.imports.mu.Unlock()
	job, err := s.importJob(in.ID)
	if err != nil {
		return nil, err
	}
	return (&answer{}).rendered(job)
}

type listImportsInput struct{}

func (s *server) listImports(context.Context, *call, *listImportsInput) (*answer, error) {
	s.imports.mu.Lock()
	defer s.imports.mu.Unlock()
	all, err := s.allImports()
	if err != nil {
		return nil, err
	}
	return (&answer{}).rendered(importJobs{Imports: all})
}

func (s *server) cancelImport(_ context.Context, _ *call, in *getImportInput) (*answer, error) {
	s.imports.mu.Lock()
	defer s.imports.mu.Unlock()
	job, err := s.importJob(in.ID)
	if err != nil {
		return nil, err
	}
	if running := s.imports.running[job.ImportID]; running != nil {
		running.cancelled = true
		running.cancel()
	} else if job.State == importInterrupted {
		stored, err := s.storedImport(job.ImportID)
		if err != nil {
			return nil, err
		}
		job.State, job.EndedTime = importCancelled, s.Now().UTC()
		stored.Job = job
		if err := s.storeImport(stored); err != nil {
			return nil, err
		}
	}
	return (&answer{}).rendered(job)
}

type listImportRowsInput struct {
	ImportID
	After   string `query:"after" doc:"The next cursor of an earlier page, or a row number. Default: start with the first row."`
	Limit   int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of rows on a page."`
	Outcome string `query:"outcome" enum:"CREATED,UPDATED,UNCHANGED,FAILED" doc:"Only rows with this outcome."`
}

// importRows is a page of rows with their outcomes.
type importRows struct {
	Rows []importedRow `json:"rows" doc:"The rows, in input order."`
	Next *string       `json:"next" doc:"Cursor of the next page; null on the last page."`
}

// importedRow is the outcome of a row.
type importedRow struct {
	Row      int64       `json:"row" doc:"The row number, counted from 1."`
	Sub      string      `json:"sub,omitzero" doc:"The account."`
	Outcome  string      `json:"outcome" enum:"CREATED,UPDATED,UNCHANGED,FAILED" doc:"CREATED, UPDATED, UNCHANGED or FAILED."`
	Code     domain.Code `json:"code,omitzero" doc:"The problem code of the refusal."`
	Events   int         `json:"events" doc:"Number of events appended."`
	Faults   []rowFault  `json:"faults" doc:"What is wrong with the row."`
	Warnings []rowFault  `json:"warnings" doc:"Data that was left out or stored elsewhere, and why."`
}

// rowFault is an error in a row, or a note on data that was not imported.
type rowFault struct {
	Pointer string `json:"pointer" doc:"JSON pointer into the account, or the member of the row."`
	Detail  string `json:"detail" doc:"The rule that was broken. It never contains the value."`
}

func (s *server) listImportRows(_ context.Context, _ *call, in *listImportRowsInput) (*answer, error) {
	s.imports.mu.Lock()
	job, err := s.importJob(in.ID)
	s.imports.mu.Unlock()
	if err != nil {
		return nil, err
	}
	after, err := strconv.ParseInt(cmp.Or(in.After, "0"), 10, 64)
	if err != nil || after < 0 {
		return nil, newProblem(domain.CodeInvalidCursor, "The cursor does not belong to this list.")
	}
	page := importRows{Rows: []importedRow{}}
	f, err := os.Open(s.importFile(job.ImportID, resultsSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return (&answer{}).rendered(page)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF { // ignores a line that is still being written
			return (&answer{}).rendered(page)
		}
		if err != nil {
			return nil, err
		}
		var r importer.Result
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("httpapi: results of import: %w", err)
		}
		if r.Row <= after || in.Outcome != "" && string(r.Outcome) != in.Outcome {
			continue
		}
		if len(page.Rows) == in.Limit {
			last := strconv.FormatInt(page.Rows[len(page.Rows)-1].Row, 10)
			page.Next = &last
			return (&answer{}).rendered(page)
		}
		page.Rows = append(page.Rows, importedRow{r.Row, r.Sub, string(r.Outcome), r.Code, r.Events, rowFaults(r.Faults), rowFaults(r.Warnings)})
	}
}

func rowFaults(findings []importer.Finding) []rowFault {
	all := make([]rowFault, len(findings))
	for i, f := range findings {
		all[i] = rowFault{f.Field, strings.TrimSpace(f.Rule + " " + f.Action)}
	}
	return all
}
