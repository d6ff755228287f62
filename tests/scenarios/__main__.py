"""Write the output of all text scenarios anew: `make rewrite-scenarios`. Read the diff before you commit it."""

from tests.scenarios.scenario import Scenario, scenarios


def main():
    for path in scenarios():
        scenario = Scenario(path)
        text = scenario.run()
        if text != scenario.text:
            path.write_text(text, encoding="utf-8")
            print(f"changed: {path.name}")


if __name__ == "__main__":
    main()
