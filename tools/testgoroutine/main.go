// Testgoroutine finds calls that end a test, such as t.Fatal, in goroutines that are not the test's. There they end the goroutine
// alone: what it was to send is never sent, and the test waits for it until the suite's time is up.
//
// Vet finds such calls where they stand in a go statement of the test itself. This one follows them through functions and methods,
// of other packages as well (a fact is exported for each function that may end its caller's goroutine), and looks at what is given
// to methods named Go (sync.WaitGroup, errgroup.Group), to time.AfterFunc, and at handlers of HTTP, which servers call in
// goroutines of their own. It does not see calls through interfaces other than testing.TB, nor through fields and parameters that
// hold functions.
//
// It is a tool for vet: go vet -vettool=bin/testgoroutine ./...
package main

import (
	"go/ast"
	"go/types"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/unitchecker"
	"golang.org/x/tools/go/types/typeutil"
)

func main() { unitchecker.Main(analyzer()) }

func analyzer() *analysis.Analyzer {
	return &analysis.Analyzer{
		Name:      "testgoroutine",
		Doc:       "find calls that end a test in goroutines that are not the test's",
		Run:       run,
		FactTypes: []analysis.Fact{new(ends)},
	}
}

// ends is the fact that a function may end the goroutine that calls it.
type ends struct {
	By string // the call that does, by way of others
}

func (*ends) AFact()           {}
func (e *ends) String() string { return "ends by " + e.By }

// search is one package's.
type search struct {
	pass   *analysis.Pass
	bodies map[types.Object]*ast.BlockStmt // functions of the package, and literals held by variables
	ends   map[types.Object]string         // what is known of them; empty while or once nothing was found
}

func run(pass *analysis.Pass) (any, error) {
	s := &search{pass: pass, bodies: map[types.Object]*ast.BlockStmt{}, ends: map[types.Object]string{}}
	for _, file := range pass.Files {
		ast.Inspect(file, s.collect)
	}
	// A function may call one whose calls are not known yet, itself among others: again, until nothing is added.
	for more := true; more; {
		more = false
		for object, body := range s.bodies {
			if s.ends[object] != "" {
				continue
			}
			if call, by := s.first(body); call != nil {
				s.ends[object], more = by, true
			}
		}
	}
	for object, by := range s.ends {
		if f, ok := object.(*types.Func); ok {
			pass.ExportObjectFact(f, &ends{By: by})
		}
	}
	for _, file := range pass.Files {
		ast.Inspect(file, s.judge)
	}
	return nil, nil
}

// collect remembers the bodies of functions that can be called by name.
func (s *search) collect(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.FuncDecl:
		if n.Body != nil {
			s.bodies[s.pass.TypesInfo.Defs[n.Name]] = n.Body
		}
	case *ast.AssignStmt:
		if len(n.Lhs) != len(n.Rhs) {
			return true
		}
		for i, left := range n.Lhs {
			s.hold(left, n.Rhs[i])
		}
	case *ast.ValueSpec:
		if len(n.Names) == len(n.Values) {
			for i, name := range n.Names {
				s.hold(name, n.Values[i])
			}
		}
	}
	return true
}

func (s *search) hold(left, right ast.Expr) {
	name, isName := left.(*ast.Ident)
	literal, isLiteral := right.(*ast.FuncLit)
	if !isName || !isLiteral || takesTest(s.pass.TypesInfo.TypeOf(literal)) {
		return
	}
	if object := s.pass.TypesInfo.ObjectOf(name); object != nil {
		s.bodies[object] = literal.Body
	}
}

// first is the first call of a body that may end its goroutine. Literals in it count only where they are called at once: others are
// called by whom they are given to, or by name.
func (s *search) first(body ast.Node) (found *ast.CallExpr, by string) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			return false
		case *ast.FuncLit:
			return false
		case *ast.CallExpr:
			if found != nil {
				return false
			}
			if literal, ok := ast.Unparen(n.Fun).(*ast.FuncLit); ok {
				if inner, why := s.first(literal.Body); inner != nil {
					found, by = inner, why
				}
			}
			if why := s.call(n); why != "" && found == nil {
				found, by = n, why
			}
		}
		return found == nil
	})
	return found, by
}

// call says what ends the goroutine in a call; nothing if it does not.
func (s *search) call(call *ast.CallExpr) string {
	var object types.Object = typeutil.Callee(s.pass.TypesInfo, call)
	f, ok := object.(*types.Func)
	if !ok {
		return s.ends[object]
	}
	f = f.Origin()
	if f.Pkg() == nil {
		return ""
	}
	if f.Pkg().Path() == "testing" {
		switch f.Name() {
		case "Fatal", "Fatalf", "FailNow", "Skip", "Skipf", "SkipNow":
			return f.Name()
		}
		return ""
	}
	if by := s.ends[f]; by != "" {
		return f.Name() + ": " + by
	}
	var fact ends
	if s.pass.ImportObjectFact(f, &fact) {
		return f.Name() + ": " + fact.By
	}
	return ""
}

// judge reports what runs in a goroutine of its own and ends it.
func (s *search) judge(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GoStmt:
		if by := s.call(n.Call); by != "" {
			s.report(n.Call, by)
		} else {
			s.started(n.Call.Fun)
		}
	case *ast.CallExpr:
		f, ok := typeutil.Callee(s.pass.TypesInfo, n).(*types.Func)
		if !ok || len(n.Args) == 0 {
			return true
		}
		if f.Name() == "Go" && f.Signature().Recv() != nil || f.FullName() == "time.AfterFunc" {
			s.started(n.Args[len(n.Args)-1])
		}
	case *ast.FuncLit:
		if handles(s.pass.TypesInfo.TypeOf(n)) {
			s.started(n)
		}
	}
	return true
}

// started reports each call that ends the goroutine in what is started as one: a literal, with those inside of it, or a name.
func (s *search) started(what ast.Expr) {
	what = ast.Unparen(what)
	if name, ok := what.(*ast.Ident); ok {
		if by := s.ends[s.pass.TypesInfo.ObjectOf(name)]; by != "" {
			s.report(what, by)
		}
		return
	}
	literal, ok := what.(*ast.FuncLit)
	if !ok {
		return
	}
	ast.Inspect(literal.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			return false // judged on its own
		case *ast.FuncLit:
			if t := s.pass.TypesInfo.TypeOf(n); takesTest(t) || handles(t) {
				return false // a test of its own, whose goroutine it may end; or judged on its own
			}
		case *ast.CallExpr:
			if by := s.call(n); by != "" {
				s.report(n, by)
			}
		}
		return true
	})
}

func (s *search) report(at ast.Node, by string) {
	s.pass.Reportf(at.Pos(), "this ends a goroutine that is not the test's (%s): send the error, or call Errorf and return", by)
}

// takesTest reports whether a function is given a test of its own, as those of t.Run are.
func takesTest(t types.Type) bool {
	signature, ok := t.Underlying().(*types.Signature)
	if !ok {
		return false
	}
	for p := range signature.Params().Variables() {
		if isNamed(p.Type(), "testing", "T", "B", "F", "TB") {
			return true
		}
	}
	return false
}

// handles reports whether a function handles requests of HTTP.
func handles(t types.Type) bool {
	signature, ok := t.Underlying().(*types.Signature)
	return ok && signature.Params().Len() == 2 && isNamed(signature.Params().At(0).Type(), "net/http", "ResponseWriter") &&
		isNamed(signature.Params().At(1).Type(), "net/http", "Request")
}

func isNamed(t types.Type, path string, names ...string) bool {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	named, ok := t.(*types.Named)
	if !ok || named.Obj().Pkg() == nil || named.Obj().Pkg().Path() != path {
		return false
	}
	for _, name := range names {
		if named.Obj().Name() == name {
			return true
		}
	}
	return false
}
