// limpid: models that architectures.py has made, read by their config.json: the same numbers, or a refusal.
// SPDX-License-Identifier: MIT
//
//     architectures FOLDER ...     of each model the largest error over the largest entry, or why it is refused
//
// Ends with 1 where an answer or a gradient is further than 1e-12 from the reference, or what is to be refused is not.
#include "model/architectures.hpp"

using namespace architectures;

namespace {

/// Whether the model of that folder is as its reference wants it.
bool check(const std::string& folder) {
  const io::Checkpoint reference(folder + "/reference.safetensors");
  const std::string kind = reference.meta("kind"), name = folder.substr(folder.find_last_of('/') + 1);
  const bool same = reference.meta("expected") == "same";
  try {
    const io::Checkpoint file(folder);
    const Case of{file, folder + "/config.json", reference};
    const Errors e = kind == "encoder" ? of_encoder(of) : kind == "decoder" ? of_decoder(of) : of_image(of);
    const bool right = same && e.answer < 1e-12 && e.gradient < 1e-12;
    std::printf("%-9s %-32s answer %.1e, gradient %.1e\n",
                right  ? "same"
                : same ? "WRONG"
                       : "TAKEN",
                name.c_str(), e.answer, e.gradient);
    return right;
  } catch (const std::exception& problem) {
    std::string text = problem.what();
    if (text.rfind(folder, 0) == 0) text.erase(0, folder.size() + 1);
    std::printf("%-9s %-32s %s\n", same ? "REFUSED" : "refused", name.c_str(), text.c_str());
    return !same;
  }
}

}  // namespace

int main(int argc, char** argv) try {
  int wrong = 0;
  for (int i = 1; i < argc; ++i) wrong += check(argv[i]) ? 0 : 1;
  std::printf("%d models, %d not as wanted\n", argc - 1, wrong);
  return wrong == 0 ? 0 : 1;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "architectures: %s\n", problem.what());
  return 1;
}
