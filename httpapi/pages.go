package httpapi

import (
	"embed"
	"html/template"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// The HTML pages. They load nothing from other servers.
//
//go:embed pages
var pageFiles embed.FS

// pages returns the resources outside /v1. Only /metrics needs a key.
func (s *server) pages() map[string]http.Handler {
	problems := template.Must(template.ParseFS(pageFiles, "pages/problems.html"))
	return map[string]http.Handler{
		"/healthz":        http.HandlerFunc(s.healthz),
		"/readyz":         http.HandlerFunc(s.readyz),
		"/metrics":        http.HandlerFunc(s.metrics),
		"/openapi.json":   static("application/json", s.openAPIDocument),
		"/asyncapi.json":  static("application/json", s.asyncAPIDocument),
		"/docs":           staticFile("text/html; charset=utf-8", "docs.html"),
		"/docs/docs.js":   staticFile("text/javascript; charset=utf-8", "docs.js"),
		"/docs/style.css": staticFile("text/css; charset=utf-8", "style.css"),
		"/problems": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if wantsJSON(r) {
				problemJSON(w, problemEntries{problemList()})
				return
			}
			problemPage(w, problems, problemList())
		}),
		"/problems/:code": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			code := domain.Code(path.Base(r.URL.Path))
			if _, ok := problemKinds[code]; !ok {
				writeProblem(w, newProblem(codeNotFound, "There is no problem with this code.").of(callOf(r.Context())))
				return
			}
			if wantsJSON(r) {
				problemJSON(w, entryOf(code))
				return
			}
			problemPage(w, problems, []problemEntry{entryOf(code)})
		}),
	}
}

// keyless applies the per-address rate limit to a page that needs no key. It
// exempts the health checks, and the metrics, which need a key.
func (s *server) keyless(path string, next http.Handler) http.Handler {
	if path == "/healthz" || path == "/readyz" || path == "/metrics" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.byAddress.take(w.Header(), s.address(r)); err != nil {
			writeProblem(w, s.problem(r.Context(), callOf(r.Context()), err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// contentPolicy allows a page to load only from this server.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func static(contentType string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Content-Security-Policy", contentPolicy)
		w.Write(body)
	})
}

func staticFile(contentType, name string) http.Handler {
	body, err := pageFiles.ReadFile("pages/" + name)
	if err != nil {
		panic("httpapi: " + err.Error()) // the files are embedded
	}
	return static(contentType, body)
}

// problemEntry is a problem as its page documents it.
type problemEntry struct {
	Type    string      `json:"type"`
	Code    domain.Code `json:"code"`
	Status  int         `json:"status"`
	Title   string      `json:"title"`
	Meaning string      `json:"meaning"`
	Remedy  string      `json:"remedy"`
}

// problemEntries is the catalogue of all problems.
type problemEntries struct {
	Problems []problemEntry `json:"problems"`
}

func entryOf(code domain.Code) problemEntry {
	k := problemKinds[code]
	return problemEntry{problemAddress(code), code, k.status, k.title, k.meaning, k.remedy}
}

// wantsJSON reports whether the client wants the problem pages as JSON:
// browsers request HTML.
func wantsJSON(r *http.Request) bool {
	accept := r.Header.Get("Accept")
	return strings.Contains(accept, "json") && !strings.Contains(accept, "text/html")
}

func problemJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	json.MarshalWrite(w, v) // an error means that the connection failed
}

func problemList() []problemEntry {
	var list []problemEntry
	for _, code := range slices.Sorted(maps.Keys(problemKinds)) {
		list = append(list, entryOf(code))
	}
	return list
}

func problemPage(w http.ResponseWriter, t *template.Template, list []problemEntry) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Content-Security-Policy", contentPolicy)
	t.Execute(w, list) // an error means that the connection failed
}
