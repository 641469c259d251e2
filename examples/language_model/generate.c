/* Tells a story: the token of the largest logit, step by step. Arguments: stories_weights.bin, number of tokens. */
#include "pieces.h"
#include "stories.h"

#include <stdio.h>
#include <stdlib.h>

static unsigned char weights[STORIES_WEIGHTS_BYTES] __attribute__((aligned(STORIES_WEIGHTS_ALIGNMENT)));
static unsigned char state[STORIES_STATE_BYTES] __attribute__((aligned(STORIES_STATE_ALIGNMENT)));
static uint64_t arena[STORIES_ARENA_BYTES / 8 + 1];
static float logits[STORIES_LOGITS_SIZE];

int main(int count, char **arguments)
{
    FILE *const file = count == 3 ? fopen(arguments[1], "rb") : NULL;
    if (file == NULL || stories_check_weights(weights, fread(weights, 1, sizeof weights, file)) != 0) {
        fprintf(stderr, "usage: generate stories_weights.bin TOKENS\n");
        return 1;
    }
    fclose(file);
    int64_t token = BEGIN;
    const int64_t tokens = atoi(arguments[2]) < CONTEXT ? atoi(arguments[2]) : CONTEXT;
    for (int64_t position = 0; position < tokens; position++) {
        if (stories_step(&token, &position, state, logits, weights, arena) != 0) {
            return 2;
        }
        token = 0;
        for (int64_t i = 1; i < STORIES_LOGITS_SIZE; i++) {
            token = logits[i] > logits[token] ? i : token;
        }
        if (token == BEGIN) {
            break;
        }
        fputs(pieces[token], stdout);
    }
    puts("");
    return 0;
}
