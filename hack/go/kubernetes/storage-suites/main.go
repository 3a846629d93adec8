// One spec of the external storage suites of Kubernetes, for a driver that a file describes. Kubernetes has them in a test binary
// beside all its other tests; a program with these alone is built and started sooner.
//
//	storage-suites --storage.testdriver=FILE --spec=NAME [FLAG OF THE SUITES]...
//
// Its last line says what became of the spec: passed, failed, skipped or missing. It ends with 0 only when it passed.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init" // shows the events of a namespace whose spec failed
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/storage/external"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
)

// title is what ginkgo puts before the name of each spec.
const title = "external storage"

// told is the part of a test that ginkgo tells of failures; the report has them too.
type told struct{}

func (told) Fail() {}

func main() {
	spec := flag.String("spec", "", "the full name of the spec")
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	gomega.RegisterFailHandler(framework.Fail)

	verdict := "missing: Kubernetes has no such spec for this driver"
	ginkgo.ReportAfterSuite("verdict", func(report ginkgo.Report) {
		for _, one := range report.SpecReports {
			if one.LeafNodeType == types.NodeTypeIt && one.FullText() == *spec {
				verdict = one.State.String()
				if one.State != types.SpecStatePassed {
					verdict += ": " + strings.Join(strings.Fields(one.Failure.Message), " ")
				}
			}
		}
	})
	suite, reporter := framework.CreateGinkgoConfig()
	suite.FocusStrings = []string{"^" + regexp.QuoteMeta(title+" "+*spec) + "$"}
	suite.SkipStrings = nil
	passed := ginkgo.RunSpecs(told{}, title, suite, reporter)
	fmt.Println(verdict)
	if !passed || verdict != types.SpecStatePassed.String() {
		os.Exit(1)
	}
}
